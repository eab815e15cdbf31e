"""What `rounds` needs of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from nnunet_adpfl.federation.messages import RoundTask, SiteFailure, SiteUpdate


class RoundEngine(Protocol):
    """Carries messages between the server and the sites."""

    def collect(self, tasks: Mapping[str, RoundTask]) -> Iterator[SiteUpdate | SiteFailure]:
        """Give each site its task and yield one answer per site, in sorted order of sites."""

    def close(self) -> None:
        """Let go of processes and connections."""
