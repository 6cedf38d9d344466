"""Fixtures of the contract tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hedgerow.core.config import BrokerConfig
from hedgerow.runtime.broker import RunningBroker
from tests.contract.brokers import KINDS, require, running_broker
from tests.contract.certificates import Certificates, issue


@pytest_asyncio.fixture(params=KINDS)
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RunningBroker]:
    """A running broker of each kind in turn."""
    require(request.param)
    async with running_broker(BrokerConfig(kind=request.param), tmp_path) as started:
        yield started


@pytest_asyncio.fixture
async def mosquitto(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    """A running Mosquitto."""
    require("mosquitto")
    async with running_broker(BrokerConfig(kind="mosquitto"), tmp_path) as started:
        yield started


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority with a server's and some clients' certificates."""
    return issue(tmp_path_factory.mktemp("certificates"))
