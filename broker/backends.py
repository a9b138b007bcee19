"""A backend as decisions see it: its profile, its origins and its feature switch. Pure."""

from dataclasses import dataclass

from broker.origins import Origin, same_origin
from broker.profiles import Profile


@dataclass(frozen=True, slots=True, eq=False)
class Backend:
    """One configured backend; how it is called stands in `broker.backend_api`."""

    name: str
    profile: Profile
    origins: frozenset[Origin]
    """Where headers for this backend may be sent."""
    assertions_enabled: bool
    allow_loopback_http: bool

    def allows_target(self, target_url: str) -> bool:
        """Say whether a URL is of exactly one of the backend's origins; a URL that cannot be read is not."""
        return same_origin(target_url, self.origins, allow_loopback_http=self.allow_loopback_http)
