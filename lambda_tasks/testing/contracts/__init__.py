"""What every transport, lock and store must hold: tests to subclass for your own.

Subclass the contract of your family in a test module, override the fixture that makes your class and
the few methods that look behind it, and pytest runs the rest:

    from lambda_tasks.testing.contracts import LockContract

    class TestMyLock(LockContract):
        @pytest.fixture
        def lock(self): ...

The contracts need pytest and nothing else. What your tests need besides (pytest-django's `django_db`,
a server) stands on your subclass. The how-tos of the documentation have an example of each.
"""

from lambda_tasks.testing.contracts.backends import BackendContract, Received
from lambda_tasks.testing.contracts.crowd import InThread, crowd, example, together, winners
from lambda_tasks.testing.contracts.locks import LockContract
from lambda_tasks.testing.contracts.samples import nested
from lambda_tasks.testing.contracts.stores import StoreContract, Stored

__all__ = [
    "BackendContract",
    "InThread",
    "LockContract",
    "Received",
    "StoreContract",
    "Stored",
    "crowd",
    "example",
    "nested",
    "together",
    "winners",
]
