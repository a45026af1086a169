"""Find out on Linux which process is at the other end of a connection on this machine."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

#: A host and a port.
Address: TypeAlias = tuple[str, int]

_TABLE = Path("/proc/net/tcp")
_NOWHERE: Address = ("0.0.0.0", 0)  # the other end of a socket that listens


def can_tell(listening: socket.socket) -> bool:
    """Return whether `is_from` works here: whether the system reports the number of a socket that is known."""
    host, port = listening.getsockname()[:2]
    return _inode((host, port), _NOWHERE) == os.fstat(listening.fileno()).st_ino


def is_from(pid: int, client: Address, server: Address) -> bool:
    """Return whether the process `pid` has the socket of a connection from `client` to `server`."""
    inode = _inode(client, server)
    if not inode:
        return False
    with suppress(OSError):  # the process has ended
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # it was closed meanwhile
                if str(descriptor.readlink()) == f"socket:[{inode}]":
                    return True
    return False


def _inode(local: Address, remote: Address) -> int | None:
    """Return the number of the socket with these addresses; None if the system does not report it."""
    wanted = [_in_table(local), _in_table(remote)]
    with suppress(OSError, ValueError, IndexError):
        for line in _TABLE.read_text().splitlines()[1:]:
            columns = line.split()
            if columns[1:3] == wanted:
                return int(columns[9])
    return None


def _in_table(address: Address) -> str:
    host, port = address
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"
