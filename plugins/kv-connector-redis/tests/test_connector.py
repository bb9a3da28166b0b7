"""The connector against a real Redis: what is kept, what is found, what is refused."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from core.cache.connector import ConnectorContext
from core.errors import ConfigError
from core_kv_connector_redis.connector import RedisConnector

BYTES = (48, 16)
#: More than two batches of a lookup.
HASHES = [hashlib.sha256(bytes([number])).digest() for number in range(150)]

#: Seconds after which the core takes a call for one that hangs.
HUNG_S = 2.0

Make = Callable[..., RedisConnector]


@pytest.fixture
def make(server: Any) -> Iterator[Make]:
    """Makes connectors to the test's Redis."""
    made: list[RedisConnector] = []

    def new(identity: str = "model", block_bytes: tuple[int, ...] = BYTES, **options: str) -> RedisConnector:
        context = ConnectorContext(
            options={"url": server.url, **options}, identity=identity, block_size=4, block_bytes=block_bytes
        )
        made.append(RedisConnector(context))
        return made[-1]

    yield new
    for connector in made:
        connector.close()


def data(number: int, group: int = 0) -> bytes:
    return bytes([number]) * BYTES[group]


def save(connector: RedisConnector, *numbers: int, groups: tuple[int, ...] = (0, 1)) -> None:
    for number in numbers:
        for group in groups:
            connector.save(HASHES[number], group, memoryview(data(number, group)))


def test_what_one_saves_another_finds(make: Make) -> None:
    save(make(), 0, 1)
    other = make()
    assert other.lookup(HASHES, 0) == 2
    for number in (0, 1):
        for group in (0, 1):
            assert other.load(HASHES[number], group) == data(number, group)
    assert other.load(HASHES[2], 0) is None


def test_lookup_counts_whole_blocks_from_where_it_is_asked(make: Make) -> None:
    connector = make()
    assert connector.lookup(HASHES, 0) == 0
    save(connector, 0, 1, 2, 4)
    save(connector, 3, groups=(1,))
    assert [connector.lookup(HASHES, start) for start in range(6)] == [3, 2, 1, 0, 1, 0]
    assert connector.lookup(HASHES[:2], 0) == 2
    assert connector.lookup(HASHES, len(HASHES)) == connector.lookup([], 0) == 0


@pytest.mark.parametrize("count", [1, 63, 64, 65, 127, 128, 129, 149, 150])
def test_lookup_of_many_blocks(make: Make, count: int) -> None:
    connector = make()
    save(connector, *range(count))
    assert connector.lookup(HASHES, 0) == count
    assert connector.lookup(HASHES, 10) == max(0, count - 10)


def test_models_and_prefixes_are_apart(make: Make, server: Any) -> None:
    save(make("model"), 0)
    save(make("model", prefix="theirs"), 0)
    assert make("other model").lookup(HASHES, 0) == 0
    assert make("other model").load(HASHES[0], 0) is None
    with server.client() as client:
        keys = sorted(client.keys())
    assert len(keys) == 4
    assert [key.split(b":")[0] for key in keys] == [b"core-kv"] * 2 + [b"theirs"] * 2
    assert all(key.split(b":")[2] == HASHES[0].hex().encode() for key in keys)


def test_blocks_end_after_their_time_and_use_prolongs_it(make: Make, server: Any) -> None:
    connector = make(ttl="100")
    save(connector, 0, 1, 2)
    with server.client() as client:
        keys = client.keys()
        assert all(90 < client.ttl(key) <= 100 for key in keys)
        for key in keys:
            client.expire(key, 10)
        assert connector.load(HASHES[0], 0) is not None
        save(connector, 1, groups=(0,))
        assert sorted(client.ttl(key) > 90 for key in keys) == [False] * 4 + [True] * 2
        for key in keys:
            client.expire(key, 1)
    time.sleep(1.1)
    assert connector.lookup(HASHES, 0) == 0
    assert connector.load(HASHES[1], 0) is None


def test_without_a_time_blocks_stay(make: Make, server: Any) -> None:
    connector = make(ttl="0")
    save(connector, 0, 0)
    assert connector.load(HASHES[0], 1) == data(0, 1)
    with server.client() as client:
        assert [client.ttl(key) for key in client.keys("*")] == [-1, -1]


def test_what_is_there_is_not_sent_again(make: Make, server: Any) -> None:
    connector = make()
    save(connector, 0)
    with server.client() as client:
        before = client.info("commandstats")["cmdstat_set"]["calls"]
        save(connector, 0)
        assert client.info("commandstats")["cmdstat_set"]["calls"] == before


@pytest.mark.parametrize("damage", ["bit", "short", "long", "empty", "moved", "foreign"])
def test_a_value_that_is_not_the_block_is_a_miss_and_goes(
    make: Make, server: Any, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    connector = make()
    save(connector, 0, 1, groups=(0,))
    with server.client() as client:
        (key,) = (key for key in client.keys("*") if HASHES[0].hex().encode() in key)
        (other,) = (name for name in client.keys("*") if name != key)
        value = client.get(key)
        assert isinstance(value, bytes)
        client.set(
            key,
            {
                "bit": value[:40] + bytes([value[40] ^ 4]) + value[41:],
                "short": value[:-1],
                "long": value + b"\0",
                "empty": b"",
                "moved": client.get(other),
                "foreign": b"\0" * len(value),
            }[damage],
        )
        assert connector.load(HASHES[0], 0) is None
        assert not client.exists(key)
    assert "is not the block that it should be and is removed" in caplog.text
    save(connector, 0, groups=(0,))
    assert connector.load(HASHES[0], 0) == data(0)


# --- when Redis is not as it should be -----------------------------------------------------------------------


def test_a_redis_that_is_away_is_an_error_at_once_and_used_again_when_it_is_back(make: Make, server: Any) -> None:
    connector = make()
    save(connector, 0)
    server.kill()
    for call in (
        lambda: connector.lookup(HASHES, 0),
        lambda: connector.load(HASHES[0], 0),
        lambda: save(connector, 0),
    ):
        began = time.monotonic()
        with pytest.raises(redis.ConnectionError):
            call()
        assert time.monotonic() - began < HUNG_S
    server.start()
    assert connector.lookup(HASHES, 0) == 0
    save(connector, 0)
    assert connector.lookup(HASHES, 0) == 1
    assert connector.load(HASHES[0], 0) == data(0)


def test_a_redis_that_does_not_answer_is_given_up(make: Make, server: Any) -> None:
    connector = make(timeout="0.2")
    save(connector, 0)
    assert connector.lookup(HASHES, 0) == 1
    server.pause()
    try:
        for call, least in ((lambda: connector.lookup(HASHES, 0), 0.05), (lambda: save(connector, 0), 0.2)):
            began = time.monotonic()
            with pytest.raises(redis.TimeoutError):
                call()
            assert least <= time.monotonic() - began < HUNG_S
    finally:
        server.resume()
    assert connector.lookup(HASHES, 0) == 1
    assert connector.load(HASHES[0], 0) == data(0)


def test_a_redis_with_a_password(make: Make, server: Any, tmp_path: Path) -> None:
    with server.client() as client:
        client.config_set("requirepass", "open sesame")
    with pytest.raises(redis.AuthenticationError):
        make().lookup(HASHES[:2], 0)  # to a longer question of a stranger Redis only hangs up
    (tmp_path / "password").write_text("open sesame\n")
    connector = make(password_file=str(tmp_path / "password"))
    save(connector, 0)
    assert connector.lookup(HASHES, 0) == 1


# --- options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://127.0.0.1"}, r"--plugin-opt redis.url: .*scheme"),
        ({"url": "redis://127.0.0.1:many"}, r"--plugin-opt redis.url: "),
        ({"password_file": "/nowhere"}, r"--plugin-opt redis.password_file: cannot read '/nowhere': No such file"),
        ({"ttl": "-1"}, r"--plugin-opt redis.ttl: '-1' will not do"),
        ({"timeout": "0"}, r"--plugin-opt redis.timeout: '0' will not do"),
        ({"tll": "1"}, r"--plugin-opt redis.tll: .* did you mean 'ttl'\?"),
        ({"max_value_bytes": "47"}, r"--plugin-opt redis.max_value_bytes: a block of KV group 0 has 48 bytes"),
    ],
)
def test_options_that_will_not_do_are_named(make: Make, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)
