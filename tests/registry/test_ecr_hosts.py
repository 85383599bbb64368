"""Host names of Amazon ECR."""

from __future__ import annotations

import pytest

from mirror.registry.ecr_hosts import EcrHost, parse_ecr_host

ACCOUNT = "123456789012"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com", EcrHost(ACCOUNT, "eu-west-1")),
        (f"{ACCOUNT}.dkr.ecr.cn-north-1.amazonaws.com.cn", EcrHost(ACCOUNT, "cn-north-1")),
        (f"{ACCOUNT}.dkr.ecr.eusc-de-east-1.amazonaws.eu", EcrHost(ACCOUNT, "eusc-de-east-1")),
        (f"{ACCOUNT}.dkr.ecr-fips.us-gov-west-1.amazonaws.com", EcrHost(ACCOUNT, "us-gov-west-1", fips=True)),
        (f"{ACCOUNT}.dkr-ecr.us-east-2.on.aws", EcrHost(ACCOUNT, "us-east-2", dual_stack=True)),
        (f"{ACCOUNT}.dkr-ecr-fips.us-east-2.on.aws", EcrHost(ACCOUNT, "us-east-2", fips=True, dual_stack=True)),
        (
            f"{ACCOUNT}.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
            EcrHost(ACCOUNT, "cn-north-1", dual_stack=True),
        ),
        ("public.ecr.aws", EcrHost(region="us-east-1", public=True)),
        ("ecr-public.aws.com", EcrHost(region="us-east-1", dual_stack=True, public=True)),
        (f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com.evil.example", None),
        (f"evil.example.{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com", None),
        (f"{ACCOUNT}.dkr.ecr.eu-west-1.on.aws", None),
        (f"{ACCOUNT}.dkr-ecr.eu-west-1.amazonaws.com", None),
        ("12345.dkr.ecr.eu-west-1.amazonaws.com", None),
        (f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com:443", None),
        ("registry.example.com", None),
    ],
)
def test_a_host_name_gives_account_region_and_kind_of_endpoint(host: str, expected: EcrHost | None) -> None:
    assert expected == parse_ecr_host(host)


@pytest.mark.parametrize(
    ("host", "repository", "command"),
    [
        (
            f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com",
            "hub/alpine",
            f"aws ecr create-repository --repository-name hub/alpine --region eu-west-1 --registry-id {ACCOUNT}",
        ),
        (
            "public.ecr.aws",
            "alias/hub/alpine",
            "aws ecr-public create-repository --repository-name hub/alpine --region us-east-1",
        ),
    ],
)
def test_the_command_of_the_aws_cli_creates_the_repository(host: str, repository: str, command: str) -> None:
    found = parse_ecr_host(host)
    assert found is not None
    assert command == found.creation_command(repository)
