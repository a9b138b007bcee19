"""A backend as decisions see it: its profile, its origins, its feature switch and how long its tasks live. Pure."""

from dataclasses import dataclass
from typing import Final

from broker.origins import Origin, same_origin
from broker.profiles import Profile

DEFAULT_TASK_LIFETIME: Final = 86_400.0


@dataclass(frozen=True, slots=True, eq=False)
class Backend:
    """One configured backend; how it is called stands in `broker.backend_api`."""

    name: str
    profile: Profile
    origins: frozenset[Origin]
    """Where headers for this backend may be sent."""
    assertions_enabled: bool
    allow_loopback_http: bool
    task_lifetime: float = DEFAULT_TASK_LIFETIME
    """Seconds from the registration of an upstream task to its end, at most; ours, since no backend publishes any."""

    def allows_target(self, target_url: str) -> bool:
        """Say whether a URL is of exactly one of the backend's origins; a URL that cannot be read is not."""
        return same_origin(target_url, self.origins, allow_loopback_http=self.allow_loopback_http)
