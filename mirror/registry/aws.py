"""Calls the API of Amazon ECR and ECR Public with boto3, and converts the exceptions of boto3 to MirrorErrors.

boto3 reads its own settings: credentials, profile, region and endpoints from the AWS_ variables and ~/.aws, a proxy
from HTTPS_PROXY, certificate authorities from AWS_CA_BUNDLE. Calls to boto3 block and cannot be interrupted, so each
call has short time limits. Importing boto3 takes 0.2 s, so this module is imported only when a call is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol
from urllib.parse import urlsplit

import boto3
import botocore.config
import botocore.exceptions
import botocore.parsers

from mirror import __version__
from mirror.errors import AuthError, ConfigError, MirrorError, NetworkError, RateLimited, RemoteError, Unreachable
from mirror.registry.ecr_hosts import EcrHost

CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 15.0  # seconds
ATTEMPTS = 3  # attempts of each call; botocore waits between them ("standard" retry mode), also after throttling

_CREDENTIALS_HINT = (
    "give boto3 credentials: AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role of this machine"
)
_SETTINGS_HINT = "correct the settings of the AWS tools (~/.aws, AWS_ variables)"
_ACTION = re.compile(r"not authorized to perform: ([a-z0-9-]{1,40}:[A-Za-z]{1,80})")
_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorized"})
# Messages for these codes are not quoted: they may repeat parts of the signed request.
_BAD_CREDENTIALS = frozenset(
    {"UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException", "SignatureDoesNotMatch"}
    | {"IncompleteSignature", "IncompleteSignatureException", "MissingAuthenticationToken", "ExpiredToken"}
    | {"MissingAuthenticationTokenException", "ExpiredTokenException", "RequestExpired", "InvalidAccessKeyId"}
)
_THROTTLED = frozenset(
    {"ThrottlingException", "Throttling", "ThrottledException", "RequestLimitExceeded", "TooManyRequestsException"}
)
_NO_CREDENTIALS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.SSOError,
    botocore.exceptions.TokenRetrievalError,
)
_BAD_SETTINGS = (
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.ConfigParseError,
    botocore.exceptions.ConfigNotFound,
    botocore.exceptions.InvalidConfigError,
    botocore.exceptions.InvalidRegionError,
    botocore.exceptions.EndpointVariantError,
    botocore.exceptions.InvalidEndpointConfigurationError,
)

Response = Mapping[str, object]


class _Client(Protocol):
    """The methods of boto3's clients `ecr` and `ecr-public` that this module uses."""

    def create_repository(self, **parameters: object) -> Response: ...

    def describe_repositories(self, **parameters: object) -> Response: ...

    def get_authorization_token(self) -> Response: ...

    def close(self) -> None: ...


class EcrApi:
    """A client for the API of Amazon ECR for one registry host. Thread-safe. Close it after use.

    names: the parts of the host name. If it contains no region, boto3's settings determine the region. endpoint: the
    URL of the API, or an empty string for the URL that boto3 chooses. The constructor raises AuthError, ConfigError.
    All methods raise AuthError, RateLimited, NetworkError, RemoteError. The `registry_code` of a RemoteError is the
    error code of AWS."""

    def __init__(self, host: str, names: EcrHost, endpoint: str) -> None:
        self._host = host
        self._prefix = "ecr-public" if names.public else "ecr"  # of the service, and of its IAM actions
        self._client = self._create_client(names, endpoint)

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    def create_repository(self, what: str, parameters: Mapping[str, object]) -> None:
        """Call CreateRepository. Error messages begin with `what`."""
        self._call(what, "CreateRepository", lambda: self._client.create_repository(**parameters))

    def describe_repositories(self, what: str, parameters: Mapping[str, object]) -> Response:
        """Call DescribeRepositories, and return its response. Error messages begin with `what`."""
        return self._call(what, "DescribeRepositories", lambda: self._client.describe_repositories(**parameters))

    def get_authorization_token(self, what: str) -> Response:
        """Call GetAuthorizationToken, and return its response. Error messages begin with `what`."""
        return self._call(what, "GetAuthorizationToken", self._client.get_authorization_token)

    def _call(self, what: str, operation: str, call: Callable[[], Response]) -> Response:
        """Call an operation of the API with `call`, and return the response. Convert exceptions to MirrorErrors."""
        try:
            return call()
        except botocore.exceptions.ClientError as error:
            raise self._response_error(what, operation, error) from error
        except botocore.exceptions.BotoCoreError as error:
            raise _no_response_error(what, error) from error
        except (OSError, ValueError, botocore.parsers.ResponseParserError) as error:
            # Not converted by botocore: a file with a token or password is missing, or a service for them is broken.
            text = f"{what}: boto3 cannot get AWS credentials: {error}"
            raise AuthError(text, hint=_CREDENTIALS_HINT) from error

    def _create_client(self, names: EcrHost, endpoint: str) -> _Client:
        """Create the boto3 client for the API, without sending a request to ECR."""
        try:
            client: _Client = boto3.session.Session().client(
                self._prefix,
                region_name=names.region or None,
                endpoint_url=endpoint or None,
                config=botocore.config.Config(
                    connect_timeout=CONNECT_TIMEOUT,
                    read_timeout=READ_TIMEOUT,
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                    user_agent_extra=f"mirror/{__version__}",
                    use_fips_endpoint=names.fips or None,
                    use_dualstack_endpoint=names.dual_stack or None,
                ),
            )
        except botocore.exceptions.NoRegionError as error:
            hint = "set AWS_DEFAULT_REGION, since the name of the host contains no region"
            raise ConfigError(f"{self._host}: no AWS region is known", hint=hint) from error
        except botocore.exceptions.BotoCoreError as error:
            raise _no_response_error(self._host, error) from error
        except (OSError, ValueError) as error:  # an unreadable file, or an invalid URL
            raise ConfigError(f"{self._host}: {error}", hint=_SETTINGS_HINT) from error
        return client

    def _response_error(self, what: str, operation: str, error: botocore.exceptions.ClientError) -> MirrorError:
        """Return the MirrorError for an error response from AWS."""
        details, metadata = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
        code, message = str(details.get("Code", "")), str(details.get("Message", ""))
        status = metadata.get("HTTPStatusCode")
        status = status if isinstance(status, int) else None
        if code in _BAD_CREDENTIALS:
            return AuthError(
                f"{what}: AWS does not accept the credentials ({code})", hint=_CREDENTIALS_HINT, status=status
            )
        text = f"{what}: AWS responded with {code}" + (f": {message}" if message else "")
        if code in _DENIED or status == 403:
            named = _ACTION.search(message)
            action = named[1] if named else f"{self._prefix}:{operation}"
            hint = f"allow the IAM action {action} in a policy of the AWS identity that mirror uses"
            return AuthError(text, hint=hint, code="auth_denied", status=status)
        if code in _THROTTLED or status == 429:
            return RateLimited(text, status=status, retryable=True)
        hint = "request a higher quota for repositories from AWS" if code == "LimitExceededException" else ""
        found = RemoteError(text, hint=hint, status=status, retryable=status is not None and status >= 500)
        found.registry_code = code
        return found


def _no_response_error(what: str, error: botocore.exceptions.BotoCoreError) -> MirrorError:
    """Return the error for a call to AWS that received no response."""
    if isinstance(error, _NO_CREDENTIALS):
        return AuthError(f"{what}: boto3 has no AWS credentials: {error}", hint=_CREDENTIALS_HINT)
    if isinstance(error, _BAD_SETTINGS):
        return ConfigError(f"{what}: {error}", hint=_SETTINGS_HINT)
    found: MirrorError
    if isinstance(error, botocore.exceptions.SSLError):
        hint = "if a proxy replaces the certificate, set AWS_CA_BUNDLE to a PEM file with the certificate of its CA"
        found = RemoteError(f"{what}: {error}", code="tls_error", hint=hint)
    elif isinstance(error, botocore.exceptions.ReadTimeoutError):
        found = NetworkError(f"{what}: {error}", code="timeout")
    elif isinstance(error, botocore.exceptions.ConnectionError):
        found = Unreachable(f"{what}: {error}")
    elif isinstance(error, botocore.exceptions.HTTPClientError):
        found = NetworkError(f"{what}: {error}")
    else:
        return RemoteError(f"{what}: {error}")
    # Name the API's host in the error. Otherwise, the registry itself would be treated as unavailable.
    url = str(getattr(error, "kwargs", {}).get("endpoint_url", ""))
    found.host = urlsplit(url).netloc.rpartition("@")[2] or "the API of Amazon ECR"
    return found
