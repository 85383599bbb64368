"""Lists the repositories of a registry with the v2 API or, if that API lists none, with the API of the product.

Docker Hub, quay.io and ghcr.io are recognized by their host names. For other registries, `/v2/_catalog` is requested
first. If this request is refused, or lists nothing below the prefix, the product is determined: Harbor, GitLab and Quay
by the path of their token service, and Artifactory by the realm of a challenge or by a header in the response to a
ping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from mirror.errors import AuthError, MirrorError, NotFound, RateLimited, Refused, RemoteError
from mirror.oci.reference import DOCKER_HUB, is_path
from mirror.registry.auth.challenge import Challenge, choose_challenge, parse_challenges
from mirror.registry.auth.credential_trial import CredentialTrials
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.catalog import Catalog, V2Catalog
from mirror.registry.catalogs.api import ONE_BY_ONE, RegistryAccess
from mirror.registry.catalogs.artifactory import PING, ArtifactoryCatalog
from mirror.registry.catalogs.docker_hub import DockerHubCatalog
from mirror.registry.catalogs.ghcr import GhcrCatalog
from mirror.registry.catalogs.gitlab import SERVICE_PATH, GitlabCatalog
from mirror.registry.catalogs.harbor import HarborCatalog
from mirror.registry.catalogs.quay import QuayCatalog
from mirror.registry.http.headers import Headers
from mirror.registry.http.url_policy import Destination
from mirror.registry.session import Anonymous, Session
from mirror.util.cancellation import Work
from mirror.util.retry_policy import Clock, SystemClock
from mirror.util.single_flight import SingleFlight, copy_error

_KNOWN: Mapping[str, Callable[[RegistryAccess], Catalog]] = {
    DOCKER_HUB: DockerHubCatalog,
    "quay.io": QuayCatalog,
    "ghcr.io": GhcrCatalog,
}
# The statuses with which registries and their token services refuse to list all repositories.
_REFUSALS = frozenset({400, 401, 403, 404, 405, 501})
_ARTIFACTORY_HEADERS = ("x-artifactory-id", "x-jfrog-version")


class RegistryCatalog:
    """The catalog of a registry whose product may be unknown. Each list is read once in a run and kept. Thread-safe.

    trials: which credentials the registry itself has accepted or rejected. clock: the clock of the run."""

    def __init__(
        self, session: Session, credentials: CredentialSource, trials: CredentialTrials, clock: Clock | None = None
    ) -> None:
        self._session = session
        self._trials = trials
        # A separate object, since the API of a product may reject credentials that the registry accepts.
        self._api_trials = CredentialTrials(clock or SystemClock())
        self._access = RegistryAccess(session, credentials)
        self._v2 = V2Catalog(session)
        self._lists: dict[str, Sequence[str]] = {}  # by prefix
        self._reads: SingleFlight[str, Sequence[str]] = SingleFlight(f"the catalog of {self._access.host}", None)

    def list_repositories(self, prefix: str, work: Work) -> Iterable[str]:
        """Return the repositories that begin with `prefix`, and all names in the list that are invalid.

        If no list can be read, raises the error from the product's API or, if the product is unknown, from the v2
        API."""
        found = self._lists.get(prefix)
        if found is None:
            found = self._reads.share(prefix, lambda: self._read_list(prefix, work), work.stop)
            self._lists[prefix] = found
        return found

    def _read_list(self, prefix: str, work: Work) -> Sequence[str]:
        """Read the list of the repositories below `prefix` from the registry."""
        known = _KNOWN.get(self._access.host)
        if known is not None:
            return self._read_product_list(known(self._access), prefix, work)
        refusal: MirrorError | None = None
        names: Sequence[str] = ()
        try:
            names = _select(self._v2.list_repositories(prefix, work), prefix)
        except RemoteError as error:
            if error.status not in _REFUSALS or isinstance(error, RateLimited):
                raise
            refusal = error
        if any(name.startswith(prefix) for name in names):
            return names
        if refusal is not None:
            trial = self._trials.find(self._access.find_credential(prefix, work))
            if trial is not None and trial.rejection is not None:
                raise refusal
        product = self._recognize_product(work)
        if product is not None:
            return self._read_product_list(product, prefix, work)
        if refusal is not None:
            if not isinstance(refusal, NotFound):
                hint = f"if this account may not list the repositories, {ONE_BY_ONE}"
                refusal.hint = f"{refusal.hint}; {hint}" if refusal.hint else hint
            raise refusal
        return names

    def _read_product_list(self, product: Catalog, prefix: str, work: Work) -> Sequence[str]:
        """Read the list from the API of a product, unless the API has rejected the credential before.

        Until the API has accepted the credential, only one list at a time is read with it."""
        trial = self._api_trials.find(self._access.find_credential(prefix, work))
        while not self._api_trials.enter(trial, work.stop):
            if trial is not None and trial.rejection is not None:
                raise trial.rejection(prefix)
        try:
            names = _select(product.list_repositories(prefix, work), prefix)
            self._api_trials.leave(is_accepted=True)
        except AuthError as error:
            if trial is not None and error.status == 401:
                rejected = error
                trial.reject(lambda subject: copy_error(rejected))
            raise
        finally:
            self._api_trials.leave()
        return names

    def _recognize_product(self, work: Work) -> Catalog | None:
        """Return the catalog that uses the API of the registry's product, or None if the product is unknown."""
        challenge, _ = self._probe("/v2/", work)
        service = self._trusted_service(challenge)
        if challenge is not None and service is not None:
            if service.path.endswith(SERVICE_PATH):
                return GitlabCatalog(self._access, service)
            if service.path == "/service/token" and challenge.params.get("service") == "harbor-registry":
                return HarborCatalog(self._access, service)
            if service.path == "/v2/auth":
                return QuayCatalog(self._access, service)
        if _names_artifactory(challenge):
            return ArtifactoryCatalog(self._access)
        challenge, headers = self._probe(PING, work)
        if _names_artifactory(challenge) or any(headers.get(name) for name in _ARTIFACTORY_HEADERS):
            return ArtifactoryCatalog(self._access)
        return None

    def _trusted_service(self, challenge: Challenge | None) -> Destination | None:
        """Return the token service in a challenge, or None if it is missing or must not receive the credentials."""
        if challenge is None or challenge.scheme != "bearer":
            return None
        try:
            return self._session.url_policy.check_realm(challenge.params["realm"])
        except Refused:
            return None

    def _probe(self, path: str, work: Work) -> tuple[Challenge | None, Headers]:
        """Send a GET request without credentials. Return the challenge in a 401, or else the headers of the response.

        Raises NetworkError, Refused, Cancelled, RemoteError (tls_error)."""
        recorder = _ChallengeRecorder()
        with self._session.open_api(self._session.url_policy, recorder) as session, suppress(AuthError):
            response = session.call("GET", path, work, kind="ping", expect=range(100, 600))
            return None, response.headers
        return choose_challenge(recorder.challenges), Headers(())


class _ChallengeRecorder(Anonymous):
    """An Authorizer that sends no credentials, and records the challenges in a 401 response."""

    challenges: Sequence[Challenge] = ()

    def handle_challenge(self, scopes: object, challenges: Sequence[str], sent: str | None, work: Work) -> None:
        """Record the challenges, and raise AuthError."""
        self.challenges = parse_challenges(challenges)
        raise AuthError("the registry requires credentials", status=401)


def _names_artifactory(challenge: Challenge | None) -> bool:
    """Return whether a challenge comes from Artifactory: its realm is `Artifactory Realm`, or a URL of its API."""
    return challenge is not None and "artifactory" in challenge.params.get("realm", "").lower()


def _select(names: Iterable[str], prefix: str) -> Sequence[str]:
    """Return the names that begin with `prefix`, and all invalid names, because the caller reports these as errors."""
    return tuple(name for name in names if name.startswith(prefix) or not is_path(name))
