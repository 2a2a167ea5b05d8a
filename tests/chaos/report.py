"""What a run of chaos prints at its end."""

from __future__ import annotations

from collections import Counter

from tests.chaos.score import Score


def show(faults: Counter[str], by_hand: Counter[str], found: Score, seconds: float) -> None:
    """Print the faults by kind, what was done by hand, what went wrong, and the counts."""
    print("\nfaults by kind")
    for name, number in sorted(faults.items()):
        print(f"  {number:4} {name}")
    print("done by others than the flows")
    for name, number in sorted(by_hand.items()):
        print(f"  {number:4} {name}")
    for problem in found.problems:
        print(f"PROBLEM  {problem}")
    figures = {
        "faults": faults.total(),
        "kinds": len(faults),
        "jobs": found.jobs,
        "lost and not reported as lost": found.lost,
        "run twice": found.twice,
        "wrong outcomes": found.wrong,
        "running although cancelled": found.running,
        "cancels that did not free the node": found.not_freed,
        "reported as lost": found.known_lost,
        "longest stall": f"{found.stall:.0f} s",
    }
    print(f"{seconds:.0f} s")
    print("; ".join(f"{name}: {value}" for name, value in figures.items()))
