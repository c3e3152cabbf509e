"""Ten thousand consent changes a second neither stop the work nor get past it."""

import asyncio
import random
import time

from harness import Sent, Site, SiteFactory, StartWorker, consent, meanwhile, post, until

PEOPLE = [f"m{number}" for number in range(1_000)]
CHANGES_PER_SECOND = 10_000
ROUND = 1_000
DECIDED = 6_000


class Storm:
    """Everybody grants and withdraws over and over."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._random = random.Random(11)
        self._changes = [
            consent(person, choice) for person in PEOPLE for choice in ("withdrawn", "granted")
        ]
        self._began = time.monotonic()
        self.appended = 0

    async def rage(self) -> None:
        """Append a round of changes, no sooner than its time has come."""
        due = self._began + self.appended / CHANGES_PER_SECOND
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        some: list[Sent] = self._random.choices(self._changes, k=ROUND)
        await self._site.feed.many(self._site.consent, some)
        self.appended += ROUND

    def per_second(self) -> float:
        """Changes appended so far, by time."""
        return self.appended / (time.monotonic() - self._began)


async def test_a_storm_of_withdrawals_starves_nobody(
    make_site: SiteFactory, start_worker: StartWorker
) -> None:
    # Checked: nothing is decided where `Partition._turn` does not halve a batch that conflicts.
    site = await make_site("storm", partitions=2)
    await site.feed.many(site.consent, map(consent, PEOPLE))
    worker = await start_worker(site)
    await worker.ready()
    storm = Storm(site)
    async with meanwhile(storm.rage):
        await until(lambda: storm.appended >= CHANGES_PER_SECOND, "the storm is up")
        for number in range(2 * DECIDED // len(PEOPLE)):
            await site.feed.many(site.content, [post(p, f"e{number}") for p in PEOPLE])

        async def goes_on() -> bool:
            return sum((await site.committed()).values()) > DECIDED

        await until(goes_on, "half of the content is decided within the storm")
        rate = storm.per_second()
    assert rate > 0.8 * CHANGES_PER_SECOND
    await site.decided()
    await site.check()
