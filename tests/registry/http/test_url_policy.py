"""The rules for redirects, upload locations, links, token services and endpoints."""

from __future__ import annotations

import logging

import pytest

from mirror.config import values
from mirror.errors import Refused, RemoteError
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.url_policy import Destination, Origin, UrlPolicy, with_query

PUBLIC = "1.1.1.1"
ANY = "0.0.0.0"  # noqa: S104 - nothing is bound to it


def policy_for(host: str = "reg.example.com", *, at: str = PUBLIC, **settings: object) -> UrlPolicy:
    """Return the rules of a registry. at: the address of the registry."""
    policy = UrlPolicy(HostSettings(host, **settings))  # type: ignore[arg-type]
    policy.check_peer(policy.destination("/v2/"), at)
    return policy


def base_of(policy: UrlPolicy, target: str = "/v2/a/blobs/uploads/x?_state=1") -> Destination:
    return policy.destination(target)


@pytest.mark.parametrize(
    ("settings", "api"),
    [
        (HostSettings("docker.io"), "https://registry-1.docker.io"),
        (HostSettings("reg.example.com"), "https://reg.example.com"),
        (HostSettings("localhost:5000", plain_http=True), "http://localhost:5000"),
        (HostSettings("[::1]:5000", plain_http=True), "http://[::1]:5000"),
        (HostSettings("reg.example.com:443"), "https://reg.example.com"),
    ],
)
def test_the_api_origin_of_a_registry(settings: HostSettings, api: str) -> None:
    policy = UrlPolicy(settings)
    assert api == str(policy.api)
    assert Destination(policy.api, "/v2/a?b", credentials=True) == policy.destination("/v2/a?b")


@pytest.mark.parametrize("target", ["v2/", "", "/v2/a b", "/v2/\r\nX: y", "/v2/ü", "/v2/\x7f"])
def test_an_invalid_path_is_refused(target: str) -> None:
    with pytest.raises(Refused) as caught:
        policy_for().destination(target)
    assert "unsafe_path" == caught.value.code


def test_a_destination_is_shown_without_its_query() -> None:
    destination = policy_for().destination("/v2/a?token=secret")
    assert "https://reg.example.com/v2/a" == str(destination)
    assert "Destination(https://reg.example.com/v2/a)" == repr(destination)


# (Location of an upload, the URL that it names, whether credentials are sent)
LOCATIONS = [
    ("/v2/a/blobs/uploads/u?_state=x", "https://reg.example.com/v2/a/blobs/uploads/u?_state=x", True),
    ("u", "https://reg.example.com/v2/a/blobs/uploads/u", True),
    ("?x=1", "https://reg.example.com/v2/a/blobs/uploads/x?x=1", True),
    ("https://reg.example.com/u", "https://reg.example.com/u", True),
    ("https://reg.example.com:443/u", "https://reg.example.com/u", True),
    ("https://REG.Example.COM/u", "https://reg.example.com/u", True),
    ("https://reg.example.com./u", "https://reg.example.com/u", True),
    ("http://reg.example.com/u", "https://reg.example.com/u", True),
    ("http://reg.example.com:443/u", "https://reg.example.com/u", True),
    ("https://storage.example.net/signed?s=%2F+ü#f", "https://storage.example.net/signed?s=%2F+%FC", False),
    ("https://reg.example.com:8443/u", "https://reg.example.com:8443/u", False),
    ("//storage.example.net/x", "https://storage.example.net/x", False),
    ("/v2/other/blobs/uploads/u", "https://reg.example.com/v2/other/blobs/uploads/u", True),
    ("/artifacts-uploads/u", "https://reg.example.com/artifacts-uploads/u", True),
]


@pytest.mark.parametrize(("location", "where", "credentials"), LOCATIONS)
def test_allowed_upload_locations(location: str, where: str, credentials: bool) -> None:
    policy = policy_for()
    found = policy.check_upload_location(location, base_of(policy))
    assert (where, credentials, not credentials) == (
        f"{found.origin}{found.target}",
        found.credentials,
        found.named_by_server,
    )


UNSAFE_PLACES = [
    "http://other.example.net/u",
    "http://reg.example.com:8080/u",
    "//evil.example\\x",
    "\\\\evil\\x",
    "https:/x",
    "https:///x",
    "https://evil\t/x",
    " javascript:alert(1)",
    "javascript:alert(1)",
    "file:///etc/passwd",
    "ftp://evil.example/",
    "https://u:p@reg.example.com/",
    "https://reg.example.com@evil.example/",
    "https://reg.example.com\\@evil.example/",
    "https://10.0.0.5/x",
    "https://127.0.0.1/x",
    "https://169.254.169.254/latest/meta-data",
    "https://0.0.0.0/",
    "https://[::]/",
    "https://[::1]/",
    "https://[::ffff:169.254.169.254]/",
    "https://[fd00:ec2::254]/",
    "https://2130706433/",
    "https://0x7f.1/",
    "https://reg.exämple.com/",
]


@pytest.mark.parametrize("place", UNSAFE_PLACES)
def test_unsafe_urls_are_refused(place: str) -> None:
    policy = policy_for(token_realms=frozenset({"evil.example"}))
    base = base_of(policy)
    told = []
    for rule in (
        policy.check_upload_location,
        policy.check_redirect,
        policy.check_next_link,
        lambda place, _: policy.check_realm(place),
    ):
        with pytest.raises(Refused) as caught:
            rule(place, base)
        told.append(caught.value)
    assert ["unsafe_location", "unsafe_redirect", "unsafe_link", "unsafe_realm"] == [error.code for error in told]
    assert not any(error.retryable or "u:p" in str(error) for error in told)


def test_an_http_upload_location_of_the_same_host_becomes_https_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = policy_for("reg.example.com:5000")
    with caplog.at_level(logging.WARNING, "mirror.http"):
        found = policy.check_upload_location("http://reg.example.com:5000/u?secret=1", base_of(policy))
    assert (policy.api, "/u?secret=1", True) == (found.origin, found.target, found.credentials)
    assert 1 == len(caplog.records)
    assert "secret" not in caplog.text


def test_a_redirect_from_https_to_http_is_refused() -> None:
    policy = policy_for()
    with pytest.raises(Refused):
        policy.check_redirect("http://reg.example.com/x", base_of(policy))


def test_an_upload_without_a_location_is_retryable() -> None:
    policy = policy_for()
    with pytest.raises(RemoteError) as caught:
        policy.check_upload_location("", base_of(policy))
    assert ("bad_response", True) == (caught.value.code, caught.value.retryable)


@pytest.mark.parametrize(
    ("location", "credentials"),
    [
        ("/v2/a/x", True),
        ("https://reg.example.com/x", True),
        ("https://reg.example.com:444/x", False),
        ("https://cdn.example.com/x", False),
        ("https://reg.example.com.evil.example/x", False),
    ],
)
def test_credentials_follow_a_redirect_only_within_the_origin(location: str, credentials: bool) -> None:
    policy = policy_for()
    assert credentials == policy.check_redirect(location, base_of(policy)).credentials


def test_each_redirect_is_checked_against_the_previous_one() -> None:
    policy = policy_for("reg.example.com", plain_http=True)
    first = policy.check_redirect("https://cdn.example.net/x", base_of(policy))
    with pytest.raises(Refused):
        policy.check_redirect("http://other.example.net/x", first)
    assert not policy.check_redirect("/y", first).credentials
    home = policy.check_redirect("http://cdn.example.net/x", base_of(policy))
    assert policy.check_redirect("http://reg.example.com/x", home).credentials


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("/v2/a/tags/list?last=x&n=100", "/v2/a/tags/list?last=x&n=100"),
        ("https://reg.example.com/v2/a/tags/list?next_page=gAAA%3D%3D", "/v2/a/tags/list?next_page=gAAA%3D%3D"),
        ("?last=b", "/v2/a/tags/list?last=b"),
        ("list?last=b", "/v2/a/tags/list?last=b"),
        ("/v2/%61/tags/list?last=b", "/v2/%61/tags/list?last=b"),
        ("/artifactory/v2/a/tags/list?last=b", "/artifactory/v2/a/tags/list?last=b"),
        ("/v2/b/tags/list?last=x", None),
        ("/v2/a/tags/list/../../../b/tags/list", None),
        ("/v2/_catalog", None),
        ("https://evil.example/v2/a/tags/list", None),
        ("https://reg.example.com:444/v2/a/tags/list", None),
        ("http://reg.example.com/v2/a/tags/list", None),
        ("https://u@reg.example.com/v2/a/tags/list", None),
        ("http://169.254.169.254/v2/a/tags/list", None),
        ("", None),
    ],
)
def test_a_next_page_must_be_of_the_same_list(link: str, target: str | None) -> None:
    policy = policy_for()
    base = policy.destination("/v2/a/tags/list?n=1000")
    if target is None:
        with pytest.raises(Refused) as caught:
            policy.check_next_link(link, base)
        assert "unsafe_link" == caught.value.code
    else:
        assert Destination(policy.api, target, credentials=True) == policy.check_next_link(link, base)


@pytest.mark.parametrize(
    ("host", "realm", "where"),
    [
        ("docker.io", "https://auth.docker.io/token", "https://auth.docker.io/token"),
        ("reg.example.com", "https://auth.example.com/t?service=x", "https://auth.example.com/t?service=x"),
        ("reg.example.com", "https://example.com/t#f", "https://example.com/t"),
        ("reg.example.com", "https://reg.example.com/token", "https://reg.example.com/token"),
        ("reg.example.com", "/token", "https://reg.example.com/token"),
        ("reg.example.com:5000", "https://auth.example.com/t", "https://auth.example.com/t"),
        ("reg.example.com:5000", "https://auth.example.com:5000/t", "https://auth.example.com:5000/t"),
        ("reg.example.com", "https://login.listed.example/t", "https://login.listed.example/t"),
        ("reg.example.com", "https://listed.example:5001/t", "https://listed.example:5001/t"),
        ("reg.example.co.uk", "https://auth.example.co.uk/t", "https://auth.example.co.uk/t"),
        ("reg.example.com", "http://reg.example.com/token", None),
        ("reg.example.com", "http://login.listed.example/t", None),
        ("reg.example.com", "https://listed.example/t", None),
        ("reg.example.com", "https://reg.example.com:8443/token", None),
        ("reg.example.com", "https://auth.example.com:8443/token", None),
        ("reg.example.com", "https://evil.example/token", None),
        ("reg.example.com", "https://reg.example.com.evil.example/", None),
        ("reg.example.com", "https://xn--rg-eka.example.net/", None),
        ("a.github.io", "https://b.github.io/token", None),
        ("reg.co.uk", "https://auth.co.uk/token", None),
        ("registry", "https://auth/token", None),
        ("1.1.1.1", "https://2.2.1.1/token", None),
        ("1.1.1.1", "https://1.1.1.1:444/token", None),
        ("reg.example.com", "https://localhost/token", None),
        ("reg.example.com", "", None),
    ],
)
def test_credentials_are_sent_only_to_a_token_service_of_the_registry(host: str, realm: str, where: str | None) -> None:
    policy = policy_for(host, token_realms=frozenset({"login.listed.example", "Listed.example:5001"}))
    if where is None:
        with pytest.raises(Refused) as caught:
            policy.check_realm(realm)
        assert "unsafe_realm" == caught.value.code
    else:
        found = policy.check_realm(realm)
        assert (where, True) == (f"{found.origin}{found.target}", found.credentials)


def test_a_realm_on_another_host_is_refused_with_a_hint() -> None:
    with pytest.raises(Refused) as caught:
        policy_for().check_realm("https://login.example.net/token")
    assert 'add "login.example.net" to registries."reg.example.com".token-realms' in caught.value.hint
    added = policy_for(token_realms=frozenset({values.host("login.example.net")}))
    assert "login.example.net" == added.check_realm("https://login.example.net/token").origin.host


def test_a_token_service_of_the_same_domain_must_not_have_an_internal_address() -> None:
    policy = policy_for()
    with pytest.raises(Refused) as caught:
        policy.check_peer(policy.check_realm("https://auth.example.com/t"), "10.0.0.1")
    assert "unsafe_realm" == caught.value.code


def test_a_token_service_that_the_operator_named_may_have_any_address() -> None:
    policy = policy_for(token_realms=frozenset({"auth.example.com"}))
    policy.check_peer(policy.check_realm("https://auth.example.com/t"), "10.0.0.1")
    assert policy.check_realm("https://auth.example.com/t").credentials


def test_a_token_service_may_redirect_only_within_its_origin() -> None:
    policy = policy_for()
    realm = policy.check_realm("https://auth.example.com/t?service=x")
    assert "/login?a" == policy.check_token_redirect("/login?a", realm).target
    for place in ("https://reg.example.com/t", "http://auth.example.com/t", "https://evil.example/"):
        with pytest.raises(Refused) as caught:
            policy.check_token_redirect(place, realm)
        assert "unsafe_realm" == caught.value.code


# (address of the registry, address of the host that it names, whether that is allowed)
PEERS = [
    (PUBLIC, "8.8.8.8", True),
    (PUBLIC, "10.0.0.1", False),
    (PUBLIC, "127.0.0.1", False),
    (PUBLIC, "169.254.169.254", False),
    (PUBLIC, ANY, False),
    (PUBLIC, "224.0.0.1", False),
    (PUBLIC, "::ffff:10.0.0.1", False),
    (PUBLIC, "not an address", False),
    ("10.0.0.1", "8.8.8.8", True),
    ("10.0.0.1", "10.0.0.2", True),
    ("10.0.0.1", "127.0.0.1", False),
    ("127.0.0.1", "192.168.1.1", False),
    ("127.0.0.1", "::1", True),
    ("127.0.0.1", "169.254.169.254", False),
    ("10.0.0.1", "fd00:ec2::254", False),
    ("10.0.0.1", ANY, False),
    ("169.254.1.1", "169.254.169.254", True),
    ("169.254.1.1", "10.0.0.1", False),
]


@pytest.mark.parametrize(("registry", "led", "allowed"), PEERS)
def test_a_host_that_a_server_named_must_not_have_an_internal_address(registry: str, led: str, allowed: bool) -> None:
    policy = policy_for(at=registry)
    for destination, code in (
        (policy.check_redirect("https://cdn.example.net/x", base_of(policy)), "unsafe_redirect"),
        (policy.check_upload_location("https://cdn.example.net/x", base_of(policy)), "unsafe_location"),
    ):
        if allowed:
            policy.check_peer(destination, led)
            assert destination.named_by_server
        else:
            with pytest.raises(Refused) as caught:
                policy.check_peer(destination, led)
            assert code == caught.value.code


def test_the_registry_itself_may_have_any_address() -> None:
    policy = policy_for(at="169.254.169.254")
    assert not policy.destination("/").named_by_server


@pytest.mark.parametrize("entry", ["minio.internal", "minio.internal:9000", "MINIO.internal"])
def test_allow_hosts_exempts_from_the_address_rule(entry: str) -> None:
    policy = policy_for(allow_hosts=frozenset({entry, "10.0.0.9"}))
    found = policy.check_redirect("https://minio.internal:9000/x", base_of(policy))
    policy.check_peer(found, "10.0.0.1")
    assert not found.credentials
    assert "10.0.0.9" == policy.check_redirect("https://10.0.0.9:9000/x", base_of(policy)).origin.host
    with pytest.raises(Refused) as caught:
        policy.check_redirect("https://10.0.0.8:9000/x", base_of(policy))
    assert 'add "10.0.0.8:9000" to registries."reg.example.com".allow-hosts' in caught.value.hint
    assert "10.0.0.8:9000" == values.host("10.0.0.8:9000")


def test_the_address_is_compared_with_that_of_the_host_that_named_it() -> None:
    policy = policy_for(at="10.0.0.1")
    outside = policy.check_redirect("https://cdn.example.net/x", base_of(policy))
    policy.check_peer(outside, PUBLIC)
    with pytest.raises(Refused):
        policy.check_peer(policy.check_redirect("https://inside.example.net/x", outside), "10.0.0.2")


def test_a_registry_at_a_literal_address_is_known_without_a_connection() -> None:
    policy = UrlPolicy(HostSettings("127.0.0.1:5000", plain_http=True))
    found = policy.check_redirect("http://127.0.0.2:5000/x", policy.destination("/v2/"))
    assert (True, False) == (found.named_by_server, found.credentials)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/u", "/u?digest=sha256%3Aab"),
        ("/u?", "/u?digest=sha256%3Aab"),
        ("/u?_state=a%2Fb+c", "/u?_state=a%2Fb+c&digest=sha256%3Aab"),
        ("/u?digest=old&x", "/u?x&digest=sha256%3Aab"),
        ("/u?digestive=1", "/u?digestive=1&digest=sha256%3Aab"),
    ],
)
def test_the_digest_is_added_to_the_query_once(target: str, expected: str) -> None:
    assert expected == with_query(Destination(Origin("https", "h", 443), target), "digest", "sha256:ab").target


def test_an_endpoint_must_be_the_index_itself_or_listed_in_the_configuration() -> None:
    policy = UrlPolicy(HostSettings("old.example.com", token_realms=frozenset({"images.example.com"})))
    assert (
        policy.api
        == policy.check_endpoint("old.example.com").origin
        == policy.check_endpoint("OLD.example.com:443").origin
    )
    assert set() == policy.endpoints
    found = policy.check_endpoint("images.example.com")
    assert {found.origin} == policy.endpoints
    assert (True, "https") == (found.credentials, found.origin.scheme)
    for host in ("other.example.com", "images.example.com:80", "http://images.example.com", "a b", ""):
        with pytest.raises(Refused) as caught:
            policy.check_endpoint(host)
        assert "unsafe_location" == caught.value.code
        assert "token-realms" not in str(caught.value)
    assert {found.origin} == policy.endpoints


def test_another_api_of_a_registry_has_its_own_origin_and_the_rules_of_the_registry() -> None:
    policy = policy_for(token_realms=frozenset({"git.example.net"}))
    service = policy.check_realm("https://git.example.net/jwt/auth?service=x")
    api = policy.with_api(service)
    assert ("git.example.net", "reg.example.com") == (api.name, policy.name)
    found = api.destination("/api/v4/groups")
    assert ("https://git.example.net/api/v4/groups", True) == (str(found), found.credentials)
    assert api.check_redirect("/x", found).credentials
    assert not api.check_redirect("https://reg.example.com/x", found).credentials
    assert not api.check_redirect("https://elsewhere.example.org/x", found).credentials
    with pytest.raises(Refused):
        api.check_redirect("http://git.example.net/x", found)


def test_another_api_in_the_domain_of_a_registry_must_have_a_public_address_unless_the_registry_has_not() -> None:
    policy = policy_for()
    api = policy.with_api(policy.check_realm("https://git.example.com/jwt/auth"))
    with pytest.raises(Refused, match="private"):
        api.check_peer(api.destination("/api/v4/groups"), "10.0.0.1")
    policy.check_peer(policy.destination("/v2/"), "10.0.0.2")
    api.check_peer(api.destination("/api/v4/groups"), "10.0.0.1")


# --- URLs of foreign layers


@pytest.mark.parametrize(
    "url", ["https://cdn.example.org/layer", "https://reg.example.com/v2/x/blobs/y", "HTTPS://1.1.1.1:8443/layer?sig=1"]
)
def test_the_url_of_a_foreign_layer_never_receives_credentials(url: str) -> None:
    policy = policy_for()
    destination = policy.check_layer_url(url)
    assert (False, True, True) == (destination.credentials, destination.named_by_server, destination.anonymous)
    for location in ("https://reg.example.com/v2/secret/blobs/y", "https://other.example.org/z", "/elsewhere"):
        redirected = policy.check_redirect(location, destination)
        assert (False, True) == (redirected.credentials, redirected.anonymous)
        again = policy.check_redirect("https://reg.example.com/v2/secret/blobs/y", redirected)
        assert not again.credentials


@pytest.mark.parametrize(
    "url",
    [
        "http://cdn.example.org/layer",
        "http://reg.example.com/layer",
        "/v2/x/blobs/y",
        "//cdn.example.org/layer",
        "cdn.example.org/layer",
        "ftp://cdn.example.org/layer",
        "file:///etc/passwd",
        "https://user:word@cdn.example.org/layer",
        "https://10.0.0.1/layer",
        "https://127.0.0.1/layer",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/layer",
        "https://2130706433/layer",
        "https://cdn.example.org\\@evil.example/layer",
        "https://cdn.example.org/a b",
        "",
    ],
)
def test_an_unsafe_url_of_a_foreign_layer_is_refused(url: str) -> None:
    with pytest.raises(Refused) as caught:
        policy_for().check_layer_url(url)
    assert "unsafe_location" == caught.value.code


def test_a_foreign_layer_at_a_private_address_is_refused_when_the_name_is_resolved() -> None:
    policy = policy_for()
    destination = policy.check_layer_url("https://cdn.example.org/layer")
    policy.check_peer(destination, PUBLIC)
    for address in ("10.0.0.1", "127.0.0.1", "169.254.169.254", "::1"):
        with pytest.raises(Refused):
            policy.check_peer(destination, address)
    policy_for(allow_hosts=frozenset({"cdn.example.org"})).check_peer(destination, "10.0.0.1")


def test_a_redirect_of_a_foreign_layer_must_use_https_and_a_public_address() -> None:
    policy = policy_for()
    destination = policy.check_layer_url("https://cdn.example.org/layer")
    for location in ("http://cdn.example.org/layer", "http://reg.example.com/", "https://10.0.0.1/layer"):
        with pytest.raises(Refused) as caught:
            policy.check_redirect(location, destination)
        assert "unsafe_redirect" == caught.value.code
