"""Partitions in a hurry go first, for a while."""

import asyncio

from consentgate.service.right_of_way import GIVE_WAY_SECONDS_MAX, RightOfWay


async def test_where_nobody_hurries_nobody_waits() -> None:
    giving = asyncio.create_task(RightOfWay(lambda: False).give())
    await asyncio.sleep(0)
    assert giving.done()


async def test_all_others_wait_until_nobody_hurries_any_more() -> None:
    hurrying = {1, 2}
    way = RightOfWay(lambda: bool(hurrying))
    giving = [asyncio.create_task(way.give()) for _ in range(2)]
    for number in (1, 2):
        await asyncio.sleep(0)
        way.moved()
        await asyncio.sleep(0)
        assert not any(each.done() for each in giving)
        hurrying.remove(number)
    way.moved()
    async with asyncio.timeout(GIVE_WAY_SECONDS_MAX / 2):
        await asyncio.gather(*giving)


async def test_nobody_waits_for_ever() -> None:
    async with asyncio.timeout(5):
        await RightOfWay(lambda: True).give()
