"""Contract tests for transports, locks and stores. Subclass them to test your own.

Subclass the contract in a test module, override the fixture that creates your object and the few methods that inspect
it, and pytest runs the tests:

    from lambda_tasks.testing.contracts import LockContract

    class TestMyLock(LockContract):
        @pytest.fixture
        def lock(self): ...

The contracts need only pytest. Anything else that your tests need, such as pytest-django's `django_db` or a server,
belongs on your subclass. The how-to guides in the documentation have an example of each contract.
"""

from lambda_tasks.testing.contracts.backends import BackendContract, Received
from lambda_tasks.testing.contracts.crowd import InThread, crowd, example, together, winners
from lambda_tasks.testing.contracts.locks import LockContract
from lambda_tasks.testing.contracts.samples import nested
from lambda_tasks.testing.contracts.store_kit import Stored
from lambda_tasks.testing.contracts.stores import StoreContract

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
