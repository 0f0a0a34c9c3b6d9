"""One segmenter before several servers: each has its share, and one that goes away loses nobody's request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_triton import FakeTriton

from slime_client import Segmenter, SegmenterError, aio, core


@pytest.fixture
def servers() -> Iterator[list[FakeTriton]]:
    started = [FakeTriton() for _ in range(3)]
    for each in started:
        each.start()
    yield started
    for each in started:
        each.stop()


def url(servers: list[FakeTriton]) -> str:
    return f"ipv4:{','.join(each.url for each in servers)}"


def test_each_server_has_its_share(servers: list[FakeTriton], photo: Path) -> None:
    with Segmenter(url(servers), "car", timeout=20) as car:
        while not all(each.received for each in servers):  # until every connection is there
            car.segment(photo)
        for each in servers:
            each.received.clear()
        for _ in range(12):
            car.segment(photo)
    assert sorted(len(each.received) for each in servers) == [4, 4, 4]


def test_asyncio_spreads_as_well(servers: list[FakeTriton], photo: Path) -> None:
    async def asked() -> None:
        async with aio.Segmenter(url(servers), "car", timeout=20) as car:
            while not all(each.received for each in servers):
                await car.segment(photo)

    asyncio.run(asked())


def test_a_server_that_vanishes_loses_nothing(servers: list[FakeTriton], photo: Path) -> None:
    for each in servers:
        each.delay_s = 0.05
    with Segmenter(url(servers), "car", timeout=20) as car:
        futures = [car.submit(photo) for _ in range(30)]
        while not all(each.received for each in servers):
            futures.append(car.submit(photo))
            futures[-1].result()
        servers[0].vanish()
        futures += [car.submit(photo) for _ in range(30)]
        assert all(each.result().array.shape == (10, 20) for each in futures)


def test_a_server_that_has_taken_its_segmenters_away_loses_nothing(servers: list[FakeTriton], photo: Path) -> None:
    """As one does that answers what it has before it stops."""
    with Segmenter(url(servers), "car", timeout=20) as car:
        while not all(each.received for each in servers):
            car.segment(photo)
        servers[0].models.clear()
        for _ in range(12):
            assert car.segment(photo).array.shape == (10, 20)


def test_a_segmenter_that_no_server_has_any_more(
    servers: list[FakeTriton], photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "_STOPPING_S", 0.5)
    with Segmenter(url(servers), "car", timeout=20) as car:
        for each in servers:
            each.models.clear()
        with pytest.raises(SegmenterError) as caught:
            car.segment(photo)
    assert caught.value.code == "NOT_FOUND"
