"""Creates a repository that the registry reports as missing, or adds a hint that says how to create it.

Many registries create a repository with the first push. Amazon ECR does not, and Harbor requires that the project (the
first part of the path) exists.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

from mirror.errors import Cancelled, MirrorError, NotFound
from mirror.registry.ecr_hosts import parse_ecr_host
from mirror.registry.http.status_errors import reports_missing_project
from mirror.util.cancellation import Work
from mirror.util.config_key import registry_key
from mirror.util.single_flight import SingleFlight, copy_error

log = logging.getLogger("mirror.registry")

T = TypeVar("T")


class RepositoryCreator(Protocol):
    """A service that creates repositories on one registry. Implementations are thread-safe."""

    def container(self, repository: str) -> str:
        """Return the name of the object that must exist for a push: the repository itself, or its project."""
        ...

    def create(self, repository: str, work: Work) -> bool:
        """Create the repository or its project. Return False if it already existed. Raises MirrorError."""
        ...


def is_missing_repository(error: NotFound) -> bool:
    """Return whether an error says that the repository itself does not exist, not only a blob or manifest in it."""
    return error.registry_code == "NAME_UNKNOWN" or reports_missing_project(error.what)


class MissingRepositories:
    """A handler for requests to repositories that a registry may lack. Creates them or adds hints. Thread-safe.

    creator: creates repositories; None if the configuration does not allow this. It is called only after the registry
    has reported a missing repository, and not again for the same name after a success or a permanent failure.
    on_created: called once with the name of each created repository or project, before any request is repeated."""

    def __init__(
        self,
        host: str,
        creator: RepositoryCreator | None = None,
        on_created: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._host = host
        self._creator = creator
        self._on_created = on_created
        self._calls: SingleFlight[str, None] = SingleFlight(f"the creation of a repository on {host}")
        self._results: dict[str, MirrorError | None] = {}  # by name of the container; the error of a failed creation
        self._existing: set[str] = set()  # repositories that requests have found

    def record_existing(self, repository: str) -> None:
        """Record that a repository exists."""
        self._existing.add(repository)

    def send(self, repository: str, work: Work, request: Callable[[], T], *, names_another: bool = False) -> T:
        """Call `request`, which writes to a repository. If it is missing, create it and call `request` again.

        names_another: whether the request also names a second repository, such as the source of a mount. That
        repository may be the missing one, so nothing is created if `repository` is known to exist. Raises the errors of
        `request` and of the creation."""
        try:
            result = request()
        except NotFound as error:
            if not is_missing_repository(error) or (names_another and repository in self._existing):
                raise
            if self._creator is None:
                error.hint = error.hint or self._creation_hint(repository, error)
                raise
            self._create(self._creator, repository, work)
        else:
            self._existing.add(repository)
            return result
        try:
            result = request()
        except NotFound as error:
            # The registry may need a moment before it recognizes the new repository.
            error.retryable = not names_another and is_missing_repository(error)
            raise
        self._existing.add(repository)
        return result

    def _create(self, creator: RepositoryCreator, repository: str, work: Work) -> None:
        """Create a repository, or wait for another thread that creates it. Raises the error if the creation failed."""
        name = creator.container(repository)

        def create() -> None:
            """Create the repository or its project, unless this run has tried this before."""
            if name in self._results:
                return
            try:
                created = creator.create(repository, work)
            except Cancelled:
                raise
            except MirrorError as error:
                if not error.retryable:
                    self._results[name] = error
                raise
            if created:
                target = f"{self._host}/{name}"
                log.info("repository_created", extra={"target": target, "text": f"created {target}"})
            self._on_created(name)
            self._results[name] = None

        if name not in self._results:
            self._calls.share(name, create, work.stop)
        error = self._results[name]
        if error is not None:
            raise copy_error(error)

    def _creation_hint(self, repository: str, error: NotFound) -> str:
        """Return a hint that says how to create a repository on this registry, which may be ECR or Harbor."""
        key = registry_key(self._host, "create")
        ecr = parse_ecr_host(self._host)
        if ecr is not None:
            return f"run `{ecr.creation_command(repository)}`, or set {key} to ecr"
        if reports_missing_project(error.what):
            project = repository.partition("/")[0]
            return f"create the project {project} in Harbor (Projects > New Project), or set {key} to harbor"
        return "this registry does not create repositories with the first push: create the repository there"
