"""Parses the host names of Amazon ECR, which contain the account and the region of a registry.

Source: Amazon ECR user guide, "Amazon ECR private registry" (forms with `dkr.ecr` and `dkr-ecr`) and the Amazon ECR
Public user guide, "Public registries".
"""

from __future__ import annotations

import re

from mirror.util.structs import Struct

PUBLIC_REGION = "us-east-1"  # the only region that creates public repositories and issues passwords for them

_PUBLIC = frozenset({"public.ecr.aws", "ecr-public.aws.com"})
# IPv4: 123456789012.dkr.ecr.eu-west-1.amazonaws.com. Dual stack: 123456789012.dkr-ecr.eu-west-1.on.aws.
_PRIVATE = re.compile(
    r"(?P<account>[0-9]{12})\.dkr(?P<mark>[.-])ecr(?P<fips>-fips)?\.(?P<region>[a-z0-9][a-z0-9-]{1,40})\."
    r"(?P<domain>amazonaws\.com|amazonaws\.com\.cn|amazonaws\.eu|on\.aws|on\.amazonwebservices\.com\.cn"
    r"|on\.amazonwebservices\.eu|c2s\.ic\.gov|sc2s\.sgov\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov)"
)


class EcrHost(Struct, frozen=True):
    """The parts of a registry host name of Amazon ECR. A part that the name does not contain is empty.

    account: the AWS account (12 digits). region: the AWS region. fips, dual_stack: whether the name belongs to a FIPS
    or dual-stack endpoint, so that the same kind of endpoint is used for the API. public: whether it is ECR Public."""

    account: str = ""
    region: str = ""
    fips: bool = False
    dual_stack: bool = False
    public: bool = False

    def repository_name(self, repository: str) -> str:
        """Return the name of a repository for the API of ECR. On ECR Public, the name excludes the registry's alias.

        If the path contains nothing after the alias, return an empty string."""
        return repository.partition("/")[2] if self.public else repository

    def creation_command(self, repository: str) -> str:
        """Return the AWS CLI command that creates a repository."""
        service = "ecr-public" if self.public else "ecr"
        region = f" --region {self.region}" if self.region else ""
        account = f" --registry-id {self.account}" if self.account else ""
        return f"aws {service} create-repository --repository-name {self.repository_name(repository)}{region}{account}"


def parse_ecr_host(host: str) -> EcrHost | None:
    """Parse the host name of a registry. Return None if it is not a name of Amazon ECR."""
    if host in _PUBLIC:
        return EcrHost(region=PUBLIC_REGION, dual_stack=host != "public.ecr.aws", public=True)
    found = _PRIVATE.fullmatch(host)
    if found is None:
        return None
    dual_stack = found["mark"] == "-"
    if dual_stack != found["domain"].startswith("on."):
        return None
    return EcrHost(found["account"], found["region"], fips=found["fips"] is not None, dual_stack=dual_stack)
