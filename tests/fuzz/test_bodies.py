"""Bodies posted to a real server on a real port: whatever they are, it refuses and lives on."""

import asyncio
import gzip
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.core.codec import encode
from tests.contract.http_site import Site, http_config, partial, running
from tests.fuzz.mutation import mutate_message
from tests.fuzz.samples import samples
from tests.fuzz.test_targets import BOMBS, FUZZ

LARGEST = 1 << 16
PATHS = ("/v1/partials", "/v1/fleet")
TAKEN = {"/v1/partials": {200, 409, 422}, "/v1/fleet": {204}}
REFUSED = {400, 403, 413}
BODIES = samples("codec")


@dataclass
class Served:
    """A running server, and a session with it, on a loop of their own."""

    runner: asyncio.Runner
    site: Site
    session: aiohttp.ClientSession

    def post(self, path: str, body: bytes, gateway: str = "gw-1") -> int:
        return self.runner.run(self._post(path, body, gateway))

    async def _post(self, path: str, body: bytes, gateway: str) -> int:
        url = self.site.url + path
        async with self.session.post(url, data=body, params={"gateway": gateway}) as response:
            await response.read()
            return response.status

    def must_live(self) -> None:
        assert self.post("/v1/partials", encode(partial())) == 200


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def start() -> Served:
            site = await stack.enter_async_context(running(http_config(max_body_bytes=LARGEST)))
            session = await stack.enter_async_context(aiohttp.ClientSession())
            return Served(runner, site, session)

        yield runner.run(start())
        runner.run(stack.aclose())


@pytest.mark.parametrize("path", PATHS)
def test_any_body_is_refused_in_words(served: Served, path: str) -> None:
    @FUZZ
    @given(st.binary(max_size=256))
    def law(body: bytes) -> None:
        assert served.post(path, body) in REFUSED

    law()
    served.must_live()


@pytest.mark.parametrize("path", PATHS)
def test_messages_that_lie_are_answered(served: Served, path: str) -> None:
    @FUZZ
    @given(st.sampled_from(BODIES), st.integers(0, 1 << 32), st.sampled_from(["gw-1", "gw-2", ""]))
    def law(body: bytes, seed: int, gateway: str) -> None:
        lie = mutate_message(body, random.Random(seed))
        assert served.post(path, lie, gateway) in REFUSED | TAKEN[path]

    law()
    served.must_live()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused(served: Served, path: str, bomb: str) -> None:
    assert served.post(path, BOMBS[bomb]) in REFUSED
    served.must_live()


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_is_too_large_is_not_read(served: Served, path: str) -> None:
    assert served.post(path, bytes(LARGEST + 1)) == 413
    served.must_live()


def test_a_body_that_claims_to_be_packed_is_unpacked_within_the_bound(served: Served) -> None:
    """A megabyte of zeros is a kilobyte of gzip: the bound holds for what comes out."""

    async def post() -> int:
        packed = gzip.compress(bytes(64 << 20))
        headers = {"Content-Encoding": "gzip"}
        url = served.site.url + PATHS[0]
        async with served.session.post(url, data=packed, headers=headers) as response:
            await response.read()
            return response.status

    assert served.runner.run(post()) in REFUSED
    served.must_live()
