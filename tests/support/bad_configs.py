"""Invalid configurations. Each is refused with exit code 2 before any request, with a position and a hint.

This module has only data, so that the same table is used for `load` and for the command line. No host in it is ever
contacted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

HEAD = "version: 1\n"
MIRROR = "mirrors:\n- source: a.example.com/app\n  targets: [b.example.com/app]\n"
# Text that no message may contain; every case with a secret uses it.
CANARY = "hunter2-canary"


@dataclass(frozen=True, slots=True)
class Case:
    """at: `line:column` of the first problem; empty if it has no position. says: texts that the message must contain.

    files: written beside the configuration before it is read. secrets: `validate` only warns, unless called with
    `--secrets`. fixed: the text that the message says to replace, and the replacement; the result is valid."""

    id: str
    text: str | bytes
    at: str
    says: tuple[str, ...]
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    secrets: bool = False
    fixed: tuple[str, str] | None = None


def _registry(settings: str, host: str = "b.example.com") -> str:
    return f"{HEAD}registries:\n  {host}: {{{settings}}}\n{MIRROR}"


def _mirror(keys: str) -> str:
    return f"{HEAD}mirrors:\n- source: a.example.com/app\n  targets: [b.example.com/app]\n  {keys}\n"


def _source(source: str) -> str:
    return f"{HEAD}mirrors:\n- source: {source}\n  targets: [b.example.com/app]\n"


def _target(target: str) -> str:
    return f"{HEAD}mirrors:\n- source: a.example.com/app\n  targets: [{target}]\n"


def _tag(tag: str, read_as: str, id: str) -> Case:
    return Case(f"tag-{id}", _mirror(f"tags: [{tag}]"), "5:10", (f'tags[0]: tag read as {read_as}; write "{tag}"',))


def _no_tag(text: str, read_as: str, id: str) -> Case:
    return Case(f"tag-{id}", _mirror(f"tags: [{text}]"), "5:10", (f"tags[0]: tag read as {read_as}; expected a tag",))


def _wildcards(*mirrors: tuple[str, str], rest: str = "") -> str:
    entries = "".join(f"- source: '{source}'\n  targets: ['{target}']\n{rest}" for source, target in mirrors)
    return f"{HEAD}mirrors:\n{entries}"


FILE = (
    Case("empty", "", "1:1", ("the configuration is empty", "version: 1")),
    Case("comments-only", "# nothing\n\n# at all\n", "1:1", ("the configuration is empty",)),
    Case("start-marker-only", "---\n", "1:1", ("the configuration is empty",)),
    Case("top-is-a-list", "- a\n- b\n", "1:1", ("expected a mapping at the top",)),
    Case("top-is-a-text", "hello\n", "1:1", ("expected a mapping at the top",)),
    Case("top-is-a-number", "12\n", "1:1", ("expected a mapping at the top",)),
    Case("tab-indent", "version: 1\nmirrors:\n\t- source: a\n", "3:1", ("tabs cannot indent YAML", "use spaces")),
    Case("two-documents", f"{HEAD}{MIRROR}---\n{HEAD}{MIRROR}", "5:1", ("expected one YAML document", "remove")),
    Case(
        "duplicate-key",
        f"{HEAD}{MIRROR}  targets: [c.example.com/app]\n",
        "5:3",
        ('mirrors[0]: duplicate key "targets", first on line 4', "keep one"),
    ),
    Case("not-yaml", f"{HEAD}mirrors: [a\n", "3:1", ("not YAML", "',' or ']'")),
    Case("escape", HEAD + 'mirrors: ["v\\d"]\n', "2:13", ("unknown escape", "single quotes")),
    Case(
        "python-tag",
        f"{HEAD}state: !!python/object/apply:os.system [id]\n{MIRROR}",
        "2:8",
        ('tag "!!python/object', "not allowed"),
    ),
    Case("include-tag", f"{HEAD}state: !include y\n{MIRROR}", "2:8", ('tag "!include" is not allowed', "remove")),
    Case("binary-tag", f"{HEAD}state: !!binary aGk=\n{MIRROR}", "2:8", ('tag "!!binary" is not allowed',)),
    Case("recursive-alias", "a: &a [*a]\n", "1:8", ("recursive alias *a",)),
    Case(
        "unknown-alias",
        f"{HEAD}state: *nowhere\n{MIRROR}",
        "2:8",
        ('*nowhere has no anchor before it; a string that begins with * must be in quotes; write "*nowhere"',),
    ),
    Case("many-aliases", f"{HEAD}a: &a x\nb: [{'*a,' * 101}]\n", "3:305", ("too many aliases: at most 100",)),
    Case(
        "billion-laughs",
        "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)),
        "6:14",
        ("too many aliases", "100,000"),
    ),
    Case("merge-bomb", f"a: &a {{k: v}}\n<<: [{'*a,' * 101}]\n", "2:306", ("too many aliases: at most 100",)),
    Case("merge-of-a-text", f"<<: x\n{HEAD}{MIRROR}", "1:1", ("<< needs a mapping",)),
    Case("deep", "[" * 5000, "1:33", ("nested too deeply: at most 32 levels",)),
    Case("deep-by-alias", f"{'[' * 20}&a {'[' * 12}{']' * 12},*a{']' * 20}", "1:1", ("expected a mapping",)),
    Case(
        "too-deep-by-alias",
        f"a: &a {'[' * 20}{']' * 20}\nb: {'[' * 20}*a",
        "2:24",
        ("nested too deeply: at most 32 levels",),
    ),
    Case("many-values", f"a: [{'x,' * 200_000}]", "1:200003", ("too big: more than 100,000 values",)),
    Case("two-mebibytes", "# " + "x" * (2 << 20), "1:1", ("too big", "1 MiB")),
    Case("utf-16", HEAD.encode("utf-16"), "1:1", ("not UTF-8 at byte 0", "save the file as UTF-8")),
    Case("latin-1", f"{HEAD}# caf".encode() + b"\xe9\n", "2:6", ("not UTF-8 at byte 16",)),
    Case("nul", f"{HEAD}# a\0b\n", "2:4", ("control character \\x00", "remove it")),
    Case("escape-character", f"{HEAD}# \x1b[2J\n", "2:3", ("control character \\x1b",)),
    Case(
        "key-is-a-number",
        f"{HEAD}{MIRROR}5000: x\n",
        "5:1",
        ('unknown key "5000", read as the number 5000; remove it',),
    ),
    Case("key-is-a-boolean", f"{HEAD}{MIRROR}yes: x\n", "5:1", ('unknown key "yes", read as true; remove it',)),
    Case("host-is-a-number", f"{HEAD}registries:\n  1.2: {{}}\n{MIRROR}", "3:3", ('the number 1.2; write "1.2"',)),
    Case("key-on", f"{HEAD}{MIRROR}on: x\n", "5:1", ('unknown key "on" here; it belongs at notify[].on',)),
    Case("key-is-a-list", f"{HEAD}{MIRROR}? [a]\n: b\n", "5:3", ("a key must be a string",)),
)

KEYS = (
    Case("nul-in-the-state", f'{HEAD}state: "a\\0b"\n{MIRROR}', "2:8", ("state: a path cannot contain", "remove it")),
    Case(
        "unknown-at-top",
        f"{HEAD}registrys: {{}}\n{MIRROR}",
        "2:1",
        ('unknown key "registrys"; did you mean "registries"?',),
    ),
    Case(
        "unknown-in-mirror",
        f"{HEAD}mirrors:\n- source: a.example.com/app\n  tragets: [b.example.com/app]\n",
        "4:3",
        ('mirrors[0]: unknown key "tragets"; did you mean "targets"?',),
    ),
    Case("underscore", _registry("plain_http: true"), "3:19", ('"plain_http"; did you mean "plain-http"?',)),
    Case(
        "elsewhere",
        _mirror("exclude: [x]"),
        "5:3",
        (
            'unknown key "exclude" here; it belongs at mirrors[].repositories.exclude or mirrors[].tags.exclude or '
            "mirrors[].referrers.exclude",
        ),
    ),
    Case("timeout-of-a-read", _registry("timeouts: {read: 10 s}"), "3:30", ('"read"; did you mean "idle"?',)),
    Case("schedule", _registry("schedule: a"), "3:19", ('"schedule" here; it belongs at', "bandwidth.schedule")),
    Case("semver-of-a-mirror", _mirror("semver: '>=2'"), "5:3", ("it belongs at mirrors[].tags.semver",)),
    Case(
        "src", f"{HEAD}mirrors:\n- src: a.example.com/app\n  targets: [b.example.com/app]\n", "3:3", ('mean "source"?',)
    ),
    Case(
        "user", _registry("user: joe, password: {env: PATH}"), "3:19", ('unknown key "user"; did you mean "username"?',)
    ),
    Case(
        "insecure",
        _registry("insecure: true"),
        "3:19",
        ('unknown key "insecure"; use `plain-http: true` for http, or `tls: {verify: false}` for https',),
        fixed=("insecure", "plain-http"),
    ),
    Case(
        "insecure-by-a-certificate",
        _registry("insecure_skip_verify: true"),
        "3:19",
        ("`tls: {verify: false}` for https",),
        fixed=("insecure_skip_verify: true", "tls: {verify: false}"),
    ),
    Case(
        "nowhere",
        _mirror("zzz: [x]"),
        "5:3",
        ('unknown key "zzz"; expected one of source, targets, repositories, tags',),
    ),
    Case("look-alike", f"{HEAD}p\u0430rallel: {{}}\n{MIRROR}", "2:1", ('"p\\u0430rallel"; did you mean "parallel"?',)),
    Case(
        "targets-in-defaults",
        f"{HEAD}defaults: {{targets: [x]}}\n{MIRROR}",
        "2:12",
        ("it belongs at mirrors[].targets",),
    ),
    Case("no-version", MIRROR, "1:1", ('missing key "version"',)),
    Case("version-2", f"version: 2\n{MIRROR}", "1:10", ("version: expected the number 1, got 2",)),
    Case("version-text", f'version: "1"\n{MIRROR}', "1:10", ('expected the number 1, got "1"',)),
    Case("no-mirrors", HEAD, "1:1", ('missing key "mirrors"',)),
    Case("mirrors-empty", f"{HEAD}mirrors: []\n", "2:10", ("mirrors: expected a list with at least one entry",)),
    Case("mirrors-nothing", f"{HEAD}mirrors:\n", "2:9", ("mirrors: expected a list", "got nothing; give it a value")),
    Case("mirror-is-a-text", f"{HEAD}mirrors: [alpine]\n", "2:11", ('mirrors[0]: expected a mapping, got "alpine"',)),
    Case("no-source", f"{HEAD}mirrors:\n- targets: [b.example.com/x]\n", "3:3", ('missing key "source"',)),
    Case("no-targets", f"{HEAD}mirrors:\n- source: a.example.com/x\n", "3:3", ('missing key "targets"',)),
    Case("targets-empty", _target(""), "4:12", ("targets: expected a list with at least one entry",)),
    Case(
        "targets-is-a-text",
        f"{HEAD}mirrors:\n- source: a.example.com/app\n  targets: b.example.com/app\n",
        "4:12",
        ("targets: expected a list", 'got "b.example.com/app"; write ["b.example.com/app"]'),
    ),
    Case(
        "boolean-as-text",
        _registry('tls: {verify: "false"}'),
        "3:33",
        ('expected true or false, got "false"; write false, without quotes',),
    ),
    Case(
        "text-as-number",
        _registry("username: 12, password: {env: PATH}"),
        "3:29",
        ('read as the number 12; write "12"',),
    ),
    *(
        Case(
            f"parallel-{value}",
            f"{HEAD}parallel: {{images: {value}}}\n{MIRROR}",
            "2:20",
            (f"expected 1..64, got {shown}",),
        )
        for value, shown in (("0", "0"), ("-1", "-1"), ("1.5", "1.5"), ("many", '"many"'), ("100000", "100000"))
    ),
    Case(
        "parallel-octal",
        f"{HEAD}parallel: {{uploads: 010}}\n{MIRROR}",
        "2:21",
        ("parallel.uploads: expected 1..64, got 010",),
    ),
    Case("host-parallel", _registry("parallel: 65"), "3:29", ("expected 1..64, got 65",)),
    Case(
        "log-level",
        f"{HEAD}log: {{level: warn}}\n{MIRROR}",
        "2:14",
        ("expected one of debug, info", "did you mean warning?"),
    ),
    Case("boolean-as-word", _registry('mount: "never"'), "3:26", ('expected true or false, got "never"',)),
    Case("number-as-text", _registry('parallel: "8"'), "3:29", ('expected 1..64, got "8"; write 8, without quotes',)),
    Case("size", f"{HEAD}spool-max: 50\n{MIRROR}", "2:12", ('read as the number 50; write "50 MiB"',)),
    Case("size-text", f"{HEAD}spool-max: '50'\n{MIRROR}", "2:12", ('expected a size like "50 MiB"', 'write "50 MiB"')),
    Case("size-in-bytes", f"{HEAD}spool-max: 52428800\n{MIRROR}", "2:12", ('; write "52428800 B"',)),
    Case("size-short", f"{HEAD}spool-max: 4G\n{MIRROR}", "2:12", ('got "4G"; write "4 GB"',)),
    Case("size-in-the-log", f"{HEAD}log: {{max-size: 50}}\n{MIRROR}", "2:17", ('number 50; write "50 MiB"',)),
    Case("size-zero-bare", f"{HEAD}spool-max: 0\n{MIRROR}", "2:12", ('number 0; expected a size like "50 MiB"',)),
    Case(
        "path-variable",
        f"{HEAD}state: $HOME/mirror\n{MIRROR}",
        "2:8",
        ("shell variables such as $HOME", 'write "~/mirror"'),
    ),
    Case("path-variable-braces", f"{HEAD}log: {{file: '${{HOME}}/x'}}\n{MIRROR}", "2:13", ('; write "~/x"',)),
    Case("path-other-variable", f"{HEAD}spool: /srv/$USER\n{MIRROR}", "2:8", ("write their values",)),
    Case(
        "size-unit",
        f"{HEAD}log: {{max-size: 50 apples}}\n{MIRROR}",
        "2:17",
        ('expected a size like "50 MiB"', "apples"),
    ),
    Case("size-zero", f"{HEAD}log: {{max-size: 0 MiB}}\n{MIRROR}", "2:17", ("more than 0 bytes",)),
    Case("state-long", f"{HEAD}state: {'x' * 5000}\n{MIRROR}", "2:8", ("too long: at most 4096 characters",)),
    Case("state-mapping", f"{HEAD}state: {{a: b}}\n{MIRROR}", "2:8", ("state: expected a path, got a mapping",)),
    Case(
        "size-newline",
        f'{HEAD}spool-max: "5 MiB\\n"\n{MIRROR}',
        "2:12",
        ("spool-max: expected a number and a unit (B",),
    ),
    Case("state-empty", f'{HEAD}state: ""\n{MIRROR}', "2:8", ('state: expected a path, got ""',)),
)

REGISTRIES = (
    Case("nul-in-a-file", _registry(r'username: u, password: {file: "a\0b"}'), "3:49", ("cannot contain", "remove it")),
    Case(
        "host-url",
        _registry("", '"https://b.example.com/v2/"'),
        "3:3",
        ("expected host[:port] without scheme or path",),
    ),
    Case(
        "host-http",
        _registry("", '"http://b.example.com"'),
        "3:3",
        ("without scheme", "plain-http: true"),
        fixed=('"http://b.example.com": {', "b.example.com: {plain-http: true"),
    ),
    Case("host-path", _registry("", "b.example.com/team"), "3:3", ("expected host[:port] without scheme or path",)),
    Case("host-port", _registry("", "b.example.com:65536"), "3:3", ("from 1 to 65535",)),
    Case("host-letters", _registry("", "b\u00fccher.example.com"), "3:3", ("punycode",)),
    Case("host-credentials", _registry("", f"joe:{CANARY}@b.example.com"), "3:3", ("credentials",)),
    Case("host-wildcard", _registry("", '"*.example.com"'), "3:3", ("wildcards",)),
    Case("host-unnameable", _registry("", "myhost"), "3:3", ("docker.io/myhost/app", 'write "myhost:443", or another')),
    Case(
        "host-twice",
        f"{HEAD}registries:\n  docker.io: {{}}\n  index.docker.io: {{}}\n{MIRROR}",
        "4:3",
        ('is the same registry as "docker.io" on line 3', "keep one"),
    ),
    Case(
        "host-twice-by-port",
        f"{HEAD}registries:\n  B.example.com:443: {{}}\n  b.example.com: {{}}\n{MIRROR}",
        "4:3",
        ('is the same registry as "B.example.com:443" on line 3',),
    ),
    Case(
        "registry-nothing",
        f"{HEAD}registries:\n  b.example.com:\n{MIRROR}",
        "3:17",
        ("expected a mapping, got nothing",),
    ),
    Case(
        "username-alone",
        _registry("username: joe"),
        "3:29",
        ("username without password; set both or neither",),
        fixed=("username: joe", ""),
    ),
    Case(
        "path-with-the-host",
        _registry("paths: {b.example.com/team: {username: joe, password: {env: PATH}}}"),
        "3:27",
        ("expected a path of repositories, without the host", 'write "team"'),
        fixed=("b.example.com/team: {u", "team: {u"),
    ),
    Case(
        "path-with-a-star",
        _registry("paths: {team/*: {username: joe, password: {env: PATH}}}"),
        "3:27",
        ('write "team", which also covers all repositories below it',),
        fixed=("team/*", "team"),
    ),
    Case(
        "path-without-a-password",
        _registry("paths: {team: {username: joe}}"),
        "3:33",
        ("missing key", "password"),
    ),
    Case(
        "path-with-an-unset-password",
        _registry("paths: {app: {username: joe, password: {env: MIRROR_NOPE}}}"),
        "3:58",
        ('registries."b.example.com".paths.app.password: ', "MIRROR_NOPE is unset or empty"),
        secrets=True,
    ),
    Case("password-alone", _registry("password: {env: PATH}"), "3:29", ("password without username",)),
    Case(
        "password-unset",
        _registry("username: joe, password: {env: MIRROR_NOPE}"),
        "3:44",
        ("MIRROR_NOPE is unset",),
        secrets=True,
    ),
    Case(
        "password-env-name",
        _registry(f"username: joe, password: {{env: {CANARY}}}"),
        "3:50",
        ("name of an environment",),
    ),
    Case(
        "password-no-file",
        _registry("username: joe, password: {file: nope}"),
        "3:44",
        ("nope: No such file",),
        secrets=True,
    ),
    Case(
        "password-is-a-directory",
        _registry("username: joe, password: {file: /etc}"),
        "3:51",
        ("/etc is a directory; set `file` to the file",),
    ),
    Case(
        "password-is-a-device",
        _registry("username: joe, password: {file: /dev/null}"),
        "3:51",
        ("/dev/null is not a regular file",),
    ),
    Case(
        "password-empty-file",
        _registry("username: joe, password: {file: secret}"),
        "3:44",
        ("secret is empty",),
        {"secret": ""},
        secrets=True,
    ),
    Case(
        "password-is-a-variable",
        _registry("username: joe, password: '${HUB_TOKEN}'"),
        "3:44",
        ("password: variables are not expanded; write {env: HUB_TOKEN}\n",),
    ),
    Case(
        "password-is-a-variable-without-braces",
        _registry("username: joe, password: $HUB_TOKEN"),
        "3:44",
        ("variables are not expanded; write {env: NAME}",),
    ),
    Case(
        "password-is-a-variable-without-quotes",
        _registry("username: joe, password: ${HUB_TOKEN}"),
        "3:44",
        ("password: write {env: HUB_TOKEN} for an environment variable\n",),
        fixed=("${HUB_TOKEN}", "{env: HUB_TOKEN}"),
    ),
    Case(
        "username-is-a-variable-without-quotes",
        _registry("username: ${HUB_USER}, password: {env: PATH}"),
        "3:29",
        ("username: shell variables such as $HOME are not expanded: write their values\n",),
        fixed=("${HUB_USER}", "joe"),
    ),
    Case(
        "password-with-braces",
        _registry(f"username: joe, password: a{{{CANARY}}}"),
        "3:44",
        ("not YAML: a string with { or } must be in quotes here",),
    ),
    Case(
        "username-is-a-variable",
        _registry("username: $HUB_USER, password: {env: PATH}"),
        "3:29",
        ("variables are not expanded; write the user name",),
        fixed=("$HUB_USER", "joe"),
    ),
    Case(
        "password-both",
        _registry("username: joe, password: {env: A, file: b}"),
        "3:44",
        ("expected exactly one of env, file",),
    ),
    Case(
        "password-env-with-a-dollar",
        _registry("username: joe, password: {env: $HUB_TOKEN}"),
        "3:50",
        ("expected the name of an environment variable like HUB_TOKEN, without $",),
        fixed=("$HUB_TOKEN", "HUB_TOKEN"),
    ),
    Case(
        "password-neither", _registry("username: joe, password: {}"), "3:44", ("expected {env: NAME} or {file: PATH}",)
    ),
    Case("password-number", _registry("username: joe, password: 90210"), "3:44", ("expected {env: NAME}", "in quotes")),
    Case(
        "password-bang",
        f"{HEAD}registries:\n  b.example.com:\n    username: joe\n    password: !{CANARY}\n{MIRROR}",
        "5:15",
        ("password: a YAML tag is not allowed", "in quotes"),
    ),
    Case(
        "password-star",
        _registry(f"username: joe, password: *{CANARY}"),
        "3:44",
        ("an alias has no anchor", "in quotes"),
    ),
    Case("password-list", _registry(f"username: joe, password: [{CANARY}]"), "3:44", ("expected {env: NAME}",)),
    Case("ca-missing", _registry("tls: {ca: nope.pem}"), "3:29", ("nope.pem: no such file",), secrets=True),
    Case(
        "cert-missing", _registry("tls: {cert: nope.pem, key: nope.key}"), "3:31", ("nope.pem: no such",), secrets=True
    ),
    Case("ca-empty", _registry("tls: {ca: ca.pem}"), "3:29", ("ca.pem is empty",), {"ca.pem": " \n"}),
    Case("ca-der", _registry("tls: {ca: ca.pem}"), "3:29", ("ca.pem is not PEM",), {"ca.pem": b"\x30\x82\x01\x0a"}),
    Case(
        "ca-is-a-key",
        _registry("tls: {ca: ca.pem}"),
        "3:29",
        ("ca.pem contains a private key, expected a certificate",),
        {"ca.pem": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"},
    ),
    Case(
        "ca-damaged",
        _registry("tls: {ca: ca.pem}"),
        "3:29",
        ("ca.pem contains no valid certificate",),
        {"ca.pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
    ),
    Case(
        "ca-huge", _registry("tls: {ca: ca.pem}"), "3:29", ("ca.pem has 10485760 bytes",), {"ca.pem": b"x" * (10 << 20)}
    ),
    Case("ca-directory", _registry("tls: {ca: .}"), "3:29", ("is not a regular file",)),
    Case(
        "cert-alone",
        _registry("tls: {cert: c.pem}"),
        "3:31",
        ("needs both cert and key",),
        {"c.pem": "-----BEGIN CERTIFICATE-----\n"},
    ),
    Case(
        "key-encrypted",
        _registry("tls: {cert: c.pem, key: k.pem}"),
        "3:43",
        ("k.pem is encrypted", "without a passphrase"),
        {
            "c.pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "k.pem": "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        },
    ),
    Case(
        "tls-with-http",
        _registry("plain-http: true, tls: {verify: false}"),
        "3:42",
        ("tls has no effect", "remove one"),
    ),
    Case(
        "proxy-socks", _registry(f'proxy: "socks5://joe:{CANARY}@p.example.com"'), "3:26", ("http, https or socks5h",)
    ),
    Case("create-type", _registry("create: acr"), "3:27", ("expected ecr, harbor, or a mapping with the key type",)),
    Case("create-no-type", _registry("create: {public: true}"), "3:27", ("type",)),
    Case("create-key", _registry("create: {type: ecr, publik: true}"), "3:39", ("unknown key",)),
    Case(
        "create-key-of-ecr",
        _registry("create: {type: harbor, kms-key: alias/x}"),
        "3:51",
        ("create.kms-key: has no effect with type harbor, only with ecr; remove it",),
    ),
    Case(
        "create-key-of-harbor",
        _registry("create: {type: ecr, storage-limit: 5 GiB}"),
        "3:54",
        ("create.storage-limit: has no effect with type ecr, only with harbor; remove it",),
    ),
    Case(
        "create-harbor-on-ecr",
        _registry("create: harbor", "public.ecr.aws"),
        "3:28",
        ("public.ecr.aws is an Amazon ECR registry, so the type must be `ecr`",),
    ),
    Case(
        "create-immutable-on-ecr-public",
        _registry("create: {type: ecr, immutable-tags: true}", "public.ecr.aws"),
        "3:56",
        ("ECR Public has no such setting; remove it",),
    ),
    Case("create-tag", _registry("create: {type: ecr, tags: {'aws:x': y}}"), "3:46", ("AWS reserves names",)),
    Case("create-tag-type", _registry("create: {type: ecr, tags: {x: 1}}"), "3:49", ("create.tags.x: ",)),
    Case("create-endpoint", _registry("create: {type: ecr, endpoint: 'ftp://x'}"), "3:49", ("not the URL of an",)),
    Case("create-quota", _registry("create: {type: harbor, storage-limit: 5}"), "3:57", ('write "5 MiB"',)),
    Case("login-type", _registry("login: acr"), "3:26", ("did you mean ecr?",)),
    Case(
        "login-with-username",
        _registry("username: joe, password: {env: PATH}, login: ecr"),
        "3:64",
        ("`login` provides the user name and password of b.example.com; remove `username`, `password` and `paths`",),
    ),
    Case("no-proxy-alone", _registry("no-proxy: [c.example.com]"), "3:29", ("no effect without `proxy`",)),
    Case(
        "no-proxy-text", _registry("proxy: 'http://p:1', no-proxy: c.example.com"), "3:50", ('write ["c.example.com"]',)
    ),
    Case("no-proxy-wildcard", _registry("proxy: 'http://p:1', no-proxy: ['*.example.com']"), "3:51", ("wildcards",)),
    Case(
        "proxy-port",
        _registry(f'proxy: "http://joe:{CANARY}@p.example.com:99999"'),
        "3:26",
        ("not the URL of a proxy",),
    ),
    Case("proxy-path", _registry(f'proxy: "http://joe:{CANARY}@p.example.com/x"'), "3:26", ("without a path",)),
    Case("proxy-space", _registry(f'proxy: "http://joe:{CANARY} @p.example.com"'), "3:26", ("spaces",)),
    Case("proxy-type", _registry(f"proxy: [{CANARY}]"), "3:26", ("expected a URL like",)),
    Case("connect-bare", _registry("timeouts: {connect: 10}"), "3:39", ('read as the number 10; write "10 s"',)),
    Case("rate-bare", _registry("rate: 5"), "3:25", ('read as the number 5; write "5/s"',)),
    Case("rate-long", _registry("rate: 100/min"), "3:25", ('got "100/min"; write "100/m"',)),
    Case("bandwidth-bare", _registry("bandwidth: 5 MiB/s"), "3:30", ("expected a mapping",)),
    Case("bandwidth-unit", _registry("bandwidth: {read: 5 MiB}"), "3:37", ('like "10 MiB/s"',)),
    Case("bandwidth-zero", _registry("bandwidth: {read: 0 MiB/s}"), "3:37", ("more than 0 bytes",)),
    Case("bandwidth-unknown", _registry("bandwidth: {download: 5 MiB/s}"), "3:31", ('unknown key "download"',)),
    Case(
        "bandwidth-time",
        _registry("bandwidth: {schedule: [{from: '24:00', to: '06:00', read: 1 MB/s}]}"),
        "3:49",
        ('"23:59"',),
    ),
    Case(
        "bandwidth-unquoted-time",
        _registry("bandwidth: {schedule: [{from: 22:00, to: '06:00', read: 1 MB/s}]}"),
        "3:49",
        ('"22:00"',),
    ),
    Case(
        "bandwidth-same-time",
        _registry("bandwidth: {schedule: [{from: '06:00', to: '06:00', read: 1 MB/s}]}"),
        "3:62",
        ("the same time", "set `read` or `write` of `bandwidth`"),
    ),
    Case(
        "bandwidth-no-effect",
        _registry("bandwidth: {schedule: [{from: '06:00', to: '07:00'}]}"),
        "3:42",
        ("set `read`, `write` or both",),
    ),
    Case("rate", _registry("rate: fast"), "3:25", ('expected a rate like "5/s"', 'got "fast"')),
    Case("rate-newline", _registry('rate: "5/s\\n"'), "3:25", ('expected a rate like "5/s"',)),
    Case("rate-zero", _registry("rate: 0/s"), "3:25", ('expected a rate like "5/s"',)),
    *(
        Case(f"timeout-{id}", _registry(f"timeouts: {{idle: {value}}}"), "3:36", says)
        for id, value, says in (
            ("zero", "0 s", ("expected 100 ms..1 h, got 0 s",)),
            ("negative", "-1 s", ('expected a duration like "60 s"',)),
            ("nan", ".nan", ("read as the number nan",)),
            ("inf", ".inf", ("read as the number inf; expected a duration",)),
            ("unit", "5 parsecs", ('expected a duration like "60 s"', "parsecs")),
            ("bare", "60", ('read as the number 60; write "60 s"',)),
            ("text", "'10'", ('got "10"; write "10 s"',)),
            ("milliseconds", "60000", ('read as the number 60000; write "60000 ms"',)),
            ("short", "5m", ('got "5m"; write "5 min"',)),
            ("days", "3 d", ("expected 100 ms..1 h, got 3 d",)),
        )
    ),
    Case(
        "realm-wildcard",
        _registry('token-realms: ["*"]'),
        "3:34",
        ("wildcards; list each host",),
        fixed=('"*"', "auth.example.com"),
    ),
    Case("realm-url", _registry('token-realms: ["https://x.example.com/y"]'), "3:34", ("without scheme or path",)),
    Case(
        "realm-text", _registry("token-realms: x.example.com"), "3:33", ("expected a list", 'write ["x.example.com"]')
    ),
    Case("allow-credentials", _registry(f'allow-hosts: ["joe:{CANARY}@x.example.com"]'), "3:33", ("credentials",)),
)

LOCATIONS = (
    Case("source-empty", _source('""'), "3:11", ("source: expected a location like registry.example.com", 'got ""')),
    Case("source-scheme", _source("https://a.example.com/app"), "3:11", ("without a scheme",)),
    Case(
        "source-transport",
        _source("docker://a.example.com/app"),
        "3:11",
        ('leave out the `docker://`; write "a.example.com/app"',),
    ),
    Case("source-case", _source("a.example.com/App"), "3:11", ("lowercase: 'app'",), fixed=("App", "app")),
    Case("source-dots", _source("a.example.com/x/../y"), "3:11", ("not a valid reference",)),
    Case("source-tag", _source("a.example.com/app:v1+2"), "3:11", ("use 'v1_2'",), fixed=("v1+2", "v1_2")),
    Case("source-digest", _source("a.example.com/app@sha256:12"), "3:11", ("expected sha256: and 64 hex digits",)),
    Case("source-algorithm", _source("a.example.com/app@md5:12"), "3:11", ("digest algorithm",)),
    Case("source-credentials", _source(f"joe:{CANARY}@a.example.com/app"), "3:11", ("credentials",)),
    Case("source-url-credentials", _source(f"https://joe:{CANARY}@a.example.com/app"), "3:11", ("without a scheme",)),
    Case(
        "source-transport-of-archives",
        _source("oci-archive:x.tar"),
        "3:11",
        ('`oci-archive:` is not supported; a bundle has the form FILE.tar; write "x.tar"',),
    ),
    Case(
        "source-is-a-host",
        _source("127.0.0.1:7001"),
        "3:11",
        ('the repository is missing after the host; write "127.0.0.1:7001/repository")\n',),
    ),
    Case("source-is-a-bundle-in-capitals", _source("images.TAR"), "3:11", ('write "images.tar")\n',)),
    Case("source-is-a-host-and-a-slash", _source("c.example.com/"), "3:11", ('write "c.example.com/repository"',)),
    Case("source-is-a-host-without-a-dot", _source("myhost:5000"), "3:11", ('write "myhost:5000/repository"',)),
    Case("source-is-an-archive", _source("images.tgz"), "3:11", ('an uncompressed tar file; write "images.tar"',)),
    Case("source-is-a-directory", _source("./dir"), "3:11", ('the prefix `oci:`; write "oci:./dir"',)),
    Case("source-is-a-directory-and-a-slash", _source("export/"), "3:11", ('write "oci:export"',)),
    Case("source-is-everything", _source('"*"'), "3:11", ('write "registry.example.com/*"',)),
    Case("source-is-every-tag", _source('"a.example.com/app:*"'), "3:11", ('write "a.example.com/app"',)),
    Case("target-is-an-archive", _target("images.tgz"), "4:13", ('an uncompressed tar file; write "images.tar"',)),
    Case("target-is-a-directory", _target("export/"), "4:13", ('write "oci:export"',)),
    Case("target-is-a-host", _target("b.example.com"), "4:13", ('write "b.example.com/repository"',)),
    Case("target-is-a-bundle-in-capitals", _target("images.TAR"), "4:13", ('write "images.tar")\n',)),
    Case("target-is-a-bundle-and-a-slash", _target("images.tar/"), "4:13", ('write "images.tar")\n',)),
    Case("target-without-a-host", _target("team/app"), "4:13", ('write "registry.example.com/team/app", or "oci:',)),
    Case("target-of-one-word", _target("app"), "4:13", ('write "registry.example.com/app", or "oci:app"',)),
    Case(
        "target-is-a-word-and-a-tag", _target("alpine:v3"), "4:13", ('"registry.example.com/alpine", or "oci:alpine"',)
    ),
    Case(
        "target-with-a-variable-without-quotes",
        _target("b.example.com/${TEAM}/x"),
        "4:13",
        ("targets[0]: shell variables such as $HOME are not expanded: write their values\n",),
        fixed=("${TEAM}", "acme"),
    ),
    Case(
        "target-with-a-variable-in-quotes",
        _target('"b.example.com/${TEAM}/x"'),
        "4:13",
        ("(shell variables such as $HOME are not expanded: write their values)\n",),
        fixed=("${TEAM}", "acme"),
    ),
    Case(
        "target-with-a-home-without-quotes",
        _target("oci:${HOME}/x"),
        "4:13",
        ('shell variables such as $HOME are not expanded: write their values; write "oci:~/x"\n',),
    ),
    Case(
        "target-with-a-variable", _target("'oci:$HOME/x'"), "4:13", ("shell variables such as $HOME", 'write "oci:~/x"')
    ),
    Case(
        "source-is-a-star", _source("*"), "3:11", ('a string that begins with * must be in quotes; write "registry.',)
    ),
    Case(
        "target-is-a-template-without-quotes",
        _wildcards(("a.example.com/team/*", "b.example.com/{repository}")).replace("'", ""),
        "4:13",
        ('targets[0]: not YAML: a string with { or } must be in quotes here; write "b.example.com/{repository}"',),
    ),
    Case(
        "target-is-a-star", _wildcards(("a.example.com/*", "*")).replace("'", ""), "4:13", ('"registry.example.com/*"',)
    ),
    Case(
        "target-is-only-a-template",
        f"{HEAD}mirrors:\n- source: a.example.com/team/*\n  targets: [{{repository}}]\n",
        "4:13",
        ('put a string with { and } in quotes; write "registry.example.com/{repository}"',),
    ),
    Case(
        "target-is-another-template",
        _wildcards(("a.example.com/team/*", "b.example.com/{repo}")),
        "4:13",
        ('only {repository} and {tag} are supported; write "b.example.com/{repository}"',),
    ),
    Case("source-template", _source('"a.example.com/{repository}"'), "3:11", ("targets",)),
    Case("source-stars", _source("a.example.com/*/x"), "3:11", ("at the end",)),
    Case(
        "target-tag",
        _target("b.example.com/app:v1"),
        "4:13",
        ("would give all images the tag", 'write "b.example.com/app"'),
    ),
    Case("target-number", _target("12"), "4:13", ("targets[0]: read as the number 12",)),
    Case("itself", _target("a.example.com/app"), "4:13", ("would mirror onto itself",)),
    Case(
        "itself-by-alias",
        f"{HEAD}mirrors:\n- source: alpine\n  targets: ['Index.docker.io:443/library/alpine']\n",
        "4:13",
        ("would mirror onto itself: docker.io/library/alpine",),
    ),
    Case("itself-by-port", _target('"A.example.com.:443/app"'), "4:13", ("would mirror onto itself",)),
    Case(
        "itself-by-http-port",
        f"{HEAD}registries: {{a.example.com: {{plain-http: true}}}}\n"
        "mirrors:\n- source: a.example.com/app\n  targets: ['a.example.com:80/app']\n",
        "5:13",
        ("would mirror onto itself",),
    ),
    Case(
        "target-twice", _target("b.example.com/app, 'b.example.com:443/app'"), "4:32", ("is listed twice; remove one",)
    ),
    Case(
        "tag-and-tags",
        f"{_source('a.example.com/app:v1')}  tags: [v1]\n",
        "5:9",
        ("contains a tag or digest", "remove it there"),
    ),
    Case(
        "targets-credentials",
        f"{HEAD}mirrors:\n- source: a.example.com/app\n  targets: joe:{CANARY}@b.example.com/app\n",
        "4:12",
        ("targets: expected a list", 'got "***@b.example.com/app"'),
    ),
    Case(
        "two-writers",
        f"{HEAD}{MIRROR}- source: c.example.com/app\n  targets: [x.example.com/y, b.example.com/app]\n",
        "6:30",
        ("mirrors[1] and mirrors[0] (line 3) may both write the same tags of b.example.com/app",),
    ),
    Case(
        "two-writers-of-a-tag",
        f"{HEAD}{MIRROR}  tags: [v1, v2]\n"
        "- source: c.example.com/app\n  targets: [b.example.com/app]\n  tags: [v2, v3]\n",
        "7:13",
        ("may both write tag v2 of b.example.com/app", "list different tags"),
        fixed=("[v2, v3]", "[v3]"),
    ),
    Case(
        "tag-and-pattern",
        f"{HEAD}{MIRROR}  tags: {{include: ['v.*']}}\n- source: c.example.com/app:v2\n  targets: [b.example.com/app]\n",
        "7:13",
        ("may both write tag v2 of b.example.com/app",),
    ),
    Case(
        "circle",
        f"{HEAD}{MIRROR}- source: b.example.com/app\n  targets: [c.example.com/app]\n"
        "- source: c.example.com/app\n  targets: [a.example.com/app]\n",
        "3:11",
        ("form a cycle: mirrors[0] → mirrors[1] → mirrors[2] → mirrors[0]", "remove one"),
    ),
)


def _grows(id: str, source: str, target: str, *says: str, repositories: str = "") -> Case:
    text = _wildcards((source, target)) + (f"  repositories: {repositories}\n" if repositories else "")
    return Case(f"grows-{id}", text, "4:13", (f"mirrors[0].targets[0]: {says[0]}", *says[1:]))


WILDCARDS = (
    _grows(
        "by-template",
        "a.example.com/team/*",
        "a.example.com/team/copy/{repository}",
        "the target is inside its own source a.example.com/team/*",
        "use a target that is not below a.example.com/team/",
    ),
    _grows("by-star", "a.example.com/team/*", "a.example.com/team/copy/*", "the target is inside its own source"),
    _grows(
        "beside", "a.example.com/team/*", "a.example.com/team/{repository}-copy", "the target is inside its own source"
    ),
    _grows(
        "before", "a.example.com/team/*", "a.example.com/team/x-{repository}", "the target is inside its own source"
    ),
    _grows("itself", "a.example.com/team/*", "A.example.com:443/team/{repository}", "would mirror onto itself"),
    _grows(
        "everything",
        "a.example.com/*",
        "a.example.com/copy/{repository}",
        "the target is inside its own source a.example.com/*",
        "use another registry",
    ),
    _grows("the-hub", "acme/*", "index.docker.io/acme/copy/*", "the target is inside its own source docker.io/acme/*"),
    Case(
        "all-of-the-hub",
        _wildcards(("docker.io/*", "registry-1.docker.io/acme/*")),
        "3:11",
        (
            'mirrors[0].source: docker.io lists repositories only by namespace; write "docker.io/namespace/*"',
            "mirrors[0].targets[0]: the target is inside its own source docker.io/*",
        ),
    ),
    Case(
        "below-a-namespace-of-the-hub",
        _wildcards(("acme/team/*", "b.example.com/*")),
        "3:11",
        ('names on Docker Hub have two parts; write "docker.io/acme/*"',),
        fixed=("acme/team/*", "docker.io/acme/*"),
    ),
    *(
        Case(
            f"all-of-{host}",
            _wildcards((f"{host}/*", "b.example.com/*")),
            "3:11",
            (f'{host} lists repositories only by namespace; write "{host}/namespace/*"',),
            fixed=(f"{host}/*", f"{host}/acme/*"),
        )
        for host in ("ghcr.io", "quay.io")
    ),
    _grows("a-layout", "oci:x/../y:team/*", "oci:y:team/copy/{repository}", "the target is inside its own source"),
    _grows("a-bundle", "x.tar:*", "./x.tar:copy/{repository}", "the target is inside its own source"),
    _grows("a-whole-layout", "oci:y", "oci:y:copy/{repository}", "the target is inside its own source"),
    _grows(
        "with-other-rules",
        "a.example.com/team/*",
        "a.example.com/team/my.copy/{repository}",
        "the target is inside its own source",
        r"or add `repositories: {exclude: ['my\.copy/.*']}`",
        repositories="{exclude: ['my-copy/.*', 'x|my.copy/.*']}",
    ),
    Case(
        "repositories-of-one",
        _mirror("repositories: {include: ['a.*']}"),
        "5:17",
        ("mirrors[0].repositories: selects repositories of a source that ends with /*", "remove it"),
    ),
    Case(
        "repositories-without-rules",
        _wildcards(("a.example.com/*", "b.example.com/*")) + "  repositories: {}\n",
        "5:17",
        ("mirrors[0].repositories",),
    ),
    Case(
        "repositories-by-shell-pattern",
        _wildcards(("a.example.com/*", "b.example.com/*")) + "  repositories: {exclude: ['*-dev']}\n",
        "5:28",
        ("mirrors[0].repositories.exclude[0]: not a regular expression", "write '.*-dev'"),
        fixed=("'*-dev'", "'.*-dev'"),
    ),
    Case(
        "repositories-of-two-writers",
        _wildcards(("a.example.com/*", "b.example.com/*"), ("c.example.com/*", "b.example.com/*"))
        + "  repositories: {include: ['a.*']}\n",
        "6:13",
        ("mirrors[1] and mirrors[0] (line 3) may both write the same tags of b.example.com/{repository}",),
    ),
    Case(
        "circle-of-wildcards",
        _wildcards(
            ("a.example.com/team/*", "b.example.com/in/{repository}"),
            ("b.example.com/in/*", "a.example.com/team/back/{repository}"),
        ),
        "3:11",
        ("mirrors[0].source: mirrors form a cycle: mirrors[0] → mirrors[1] → mirrors[0]; remove one",),
    ),
    Case(
        "circle-of-equal-wildcards",
        _wildcards(
            ("a.example.com/*", "b.example.com/{repository}"),
            ("b.example.com/in/*", "c.example.com/{repository}"),
            ("b.example.com/*", "a.example.com/{repository}"),
        ),
        "3:11",
        ("mirrors form a cycle: mirrors[0] → mirrors[2] → mirrors[0]; remove one",),
    ),
    Case(
        "circle-of-a-wildcard-and-one-repository",
        _wildcards(
            ("a.example.com/team/app", "b.example.com/in/app"),
            ("b.example.com/in/*", "a.example.com/team/{repository}"),
        ),
        "3:11",
        ("mirrors form a cycle: mirrors[0] → mirrors[1] → mirrors[0]; remove one",),
    ),
)

PLATFORMS = (
    Case("platforms-text", _mirror("platforms: linux/amd64"), "5:14", ("platforms: expected a list",)),
    Case("platforms-none", _mirror("platforms: []"), "5:14", ("platforms: expected a list with at least one entry",)),
    Case(
        "platforms-unknown",
        _mirror("platforms: [linux/amd65, linux/amd64/v9, windows]"),
        "5:15",
        (
            "platforms[0]: unknown architecture 'amd65'; expected one of 386, amd64,",
            "platforms[1]: unknown variant 'v9' of amd64",
            "platforms[2]: not a platform: 'windows'; expected OS/ARCHITECTURE[/VARIANT]",
        ),
    ),
    Case(
        "platforms-alias",
        _mirror("platforms: [linux/aarch64]"),
        "5:15",
        ("write 'linux/arm64'",),
        fixed=("linux/aarch64", "linux/arm64"),
    ),
    Case(
        "platforms-of-a-digest",
        f"{HEAD}mirrors:\n- source: a.example.com/app@sha256:{'0' * 64}\n  targets: [b.example.com/app]\n"
        "  platforms: [linux/amd64]\n",
        "3:11",
        ("`platforms` may change the digest", "write HOST/REPOSITORY:TAG@DIGEST"),
        fixed=("app@sha256", "app:v1@sha256"),
    ),
    Case(
        "platforms-too-many",
        _mirror(f"platforms: [{', '.join(f'windows(10.0.{number})/amd64' for number in range(101))}]"),
        "3:11",
        ("`platforms` lists more than 100 platforms",),
    ),
    Case("index-unknown", _mirror("index: thin"), "5:10", ("index: expected one of rewrite, sparse",)),
)

TAGS = (
    _tag("1.10", "the number 1.1", "float"),
    _no_tag("22:22", "the number 1342", "sexagesimal"),
    _no_tag("-1", "the number -1", "negative"),
    _no_tag(".5", "the number 0.5", "fraction"),
    _tag("0123", "the number 83", "octal"),
    _tag("0o17", "the number 15", "octal-of-yaml-1.2"),
    _tag("089", "the number 89.0", "zero-of-yaml-1.2"),
    _tag("1_000", "the number 1000", "underscore"),
    _tag("0x1F", "the number 31", "hexadecimal"),
    _tag("9" * 50, "a number", "many-digits"),
    _tag("1e3", "the number 1000.0", "exponent"),
    _tag("20240101", "the number 20240101", "integer"),
    _tag("2024-01-01", "a date", "date"),
    _tag("on", "true", "on"),
    _tag("no", "false", "no"),
    _tag("yes", "true", "yes"),
    _tag("null", "nothing", "null"),
    _no_tag("~", "nothing", "tilde"),
    Case("tags-empty", _mirror("tags: []"), "5:9", ("nothing would be selected", "remove the key to select every tag")),
    Case("tags-text", _mirror("tags: v1"), "5:9", ("expected a list or a mapping", 'got "v1"; write ["v1"]')),
    Case("tags-empty-text", _mirror('tags: ""'), "5:9", ("nothing would be selected",)),
    Case("tags-empty-mapping", _mirror("tags: {}"), "5:9", ("nothing would be selected",)),
    Case("tags-nothing", _mirror("tags:"), "5:8", ("expected a list or a mapping, got nothing",)),
    Case("include-empty", _mirror("tags: {include: []}"), "5:19", ("nothing would be selected",)),
    Case("tag-plus", _mirror("tags: [v1+2]"), "5:10", ("use 'v1_2'",), fixed=("v1+2", "v1_2")),
    Case("tag-dot", _mirror("tags: [.x]"), "5:10", ('not a tag: ".x"', "does not begin with")),
    Case("tag-long", _mirror(f"tags: [{'x' * 129}]"), "5:10", ("at most 128 characters",)),
    Case("tag-escape", _mirror('tags: ["a\\e[2J"]'), "5:10", ('not a tag: "a\\x1b[2J"',)),
    Case(
        "tag-pattern",
        _mirror("tags: ['v1.*']"),
        "5:10",
        ("under `tags: {include",),
        fixed=("['v1.*']", "{include: ['v1.*']}"),
    ),
    Case("tag-digest", _mirror("tags: ['sha256:12']"), "5:10", ("a digest belongs in `source`",)),
    Case("pattern-star", _mirror("tags: {exclude: [*-rc]}"), "5:20", ('must be in quotes; write ".*-rc"',)),
    Case("pattern-of-one-star", _mirror("tags: {include: [*]}"), "5:20", ('must be in quotes; write ".*"',)),
    Case(
        "pattern-braces",
        _mirror("tags: {include: [v{1,2}]}"),
        "5:21",
        ("not YAML", "put patterns in single quotes"),
        fixed=("v{1,2}", "'v{1,2}'"),
    ),
    Case("pattern-open", _mirror("tags: {include: ['(']}"), "5:20", ("not a regular expression", "missing )")),
    Case(
        "pattern-look-around", _mirror("tags: {exclude: [x, '(?!a).*']}"), "5:23", ("(?!", "look-around", "`exclude`")
    ),
    Case(
        "pattern-long", _mirror(f"tags: {{include: [{'x' * 10_000}]}}"), "5:20", ("pattern is too long", "at most 1000")
    ),
    Case("pattern-number", _mirror("tags: {include: [1.0]}"), "5:20", ('read as the number 1.0; write "1.0"',)),
    Case("pattern-text", _mirror("tags: {include: 'v.*'}"), "5:19", ("expected a list", 'write ["v.*"]')),
    Case("range-word", _mirror("tags: {semver: latest}"), "5:18", ('a version range: "latest"; latest', ">=2.50 <4")),
    Case("range-empty", _mirror("tags: {semver: ''}"), "5:18", ('expected a range like ">=2.50 <4"',)),
    Case("range-blank", _mirror("tags: {semver: ' '}"), "5:18", ('write "*" to match all versions',)),
    Case("range-of-nothing", _mirror("tags: {semver: '>=1 ||'}"), "5:18", ("an alternative is empty",)),
    Case("range-number", _mirror("tags: {semver: 1.20}"), "5:18", ('read as the number 1.2; write "1.20"',)),
    Case("range-list-empty", _mirror("tags: {semver: []}"), "5:18", ("expected a range like", "or a list of ranges")),
    Case(
        "range-in-a-list",
        _mirror("tags: {semver: ['1.x', '=>2']}"),
        "5:26",
        ("semver[1]: not a version range", 'write ">=2"'),
    ),
    Case("range-go", _mirror("tags: {semver: '>= 1.2, < 2'}"), "5:18", ('; write ">=1.2 <2"',)),
    Case("range-ruby", _mirror("tags: {semver: '~> 1.2'}"), "5:18", ('; write ">=1.2 <2"',)),
    Case("range-ruby-of-three", _mirror("tags: {semver: '~> 1.2.3'}"), "5:18", ('; write ">=1.2.3 <1.3"',)),
    Case("range-python", _mirror("tags: {semver: '~=1.4.2, ==1.4.*'}"), "5:18", ('; write ">=1.4.2 <1.5 =1.4.*"',)),
    Case("range-or", _mirror("tags: {semver: '1.x | 3.x'}"), "5:18", ('; write "1.x || 3.x"',)),
    Case("range-not", _mirror("tags: {semver: '>=1 !=1.2'}"), "5:18", ("under `exclude`",)),
    Case("range-hyphen", _mirror("tags: {semver: '>1 - <2'}"), "5:18", ("has no operators",)),
    Case("range-of-four", _mirror("tags: {semver: '>=1.2.3.4'}"), "5:18", (">=1.2.3.4 is not a valid comparator",)),
    Case("range-tilde-any", _mirror("tags: {semver: '~*'}"), "5:18", ('not a version range: "~*"',)),
    Case("range-long", _mirror(f"tags: {{semver: '{'1' * 2000}'}}"), "5:18", ("range is too long", "at most 1000")),
    Case("newest-zero", _mirror("tags: {newest: 0}"), "5:18", ("expected a number from 1, or a mapping", "got 0")),
    Case("newest-text", _mirror('tags: {newest: "5"}'), "5:18", ('got "5"; write 5, without quotes',)),
    Case("newest-long-text", _mirror(f'tags: {{newest: "{"9" * 5000}"}}'), "5:18", ("expected a number from 1",)),
    Case("newest-without-count", _mirror("tags: {newest: {by: created}}"), "5:18", ('missing key "count"',)),
    Case("newest-count", _mirror("tags: {newest: {count: 0}}"), "5:26", ("expected a number from 1, got 0",)),
    Case("newest-by", _mirror("tags: {newest: {count: 5, by: date}}"), "5:33", ("expected one of version, created",)),
    Case("min-age-number", _mirror("tags: {min-age: 72}"), "5:19", ('read as the number 72; write "72 s"',)),
    Case("min-age-unit", _mirror("tags: {min-age: 72 hours}"), "5:19", ('; write "72 h"',)),
    Case("min-age-zero", _mirror("tags: {min-age: 0 s}"), "5:19", ("expected 1 s..87600 h, got 0 s",)),
    Case("min-tags", _mirror("tags: {min-tags: -1}"), "5:20", ("expected a number from 0, got -1",)),
    Case("max-tags", _mirror("tags: {max-tags: 0}"), "5:20", ("expected a number from 1, got 0",)),
    Case("min-above-max", _mirror("tags: {min-tags: 3, max-tags: 2}"), "5:20", ("is greater than `max-tags`",)),
    Case("min-above-newest", _mirror("tags: {newest: 2, min-tags: 3}"), "5:31", ("is greater than `newest`",)),
    Case(
        "two-mirrors-in-one-range",
        f"{HEAD}{MIRROR}  tags: {{semver: '>=2'}}\n- source: c.example.com/app:v2.1\n  targets: [b.example.com/app]\n",
        "7:13",
        ("may both write tag v2.1 of b.example.com/app",),
    ),
)

PUBLIC_KEY = (
    "-----BEGIN PUBLIC KEY-----\n"
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEhlVaPg0U18Eq4PKYzoP7FQXKKitK\n"
    "rfgeiaDbJj7YXftF9xPviKi9BIiWAjLpO6wVThc2XeeAer/G4Ggf7h2KVg==\n"
    "-----END PUBLIC KEY-----\n"
)


def _keys(keys: str) -> str:
    return _mirror(f"verify-signatures: {{{keys}}}")


def _key_file(content: str | bytes, *says: str, id: str) -> Case:
    return Case(f"key-{id}", _keys("keys: [a.pub]"), "5:30", ("verify-signatures.keys[0]: ", *says), {"a.pub": content})


def _keyless(key: str) -> Case:
    says = f'unknown key "{key}"; keyless signatures are not supported; list the public keys under `keys`'
    return Case(f"key-{key}", _keys(f"keys: [a.pub], {key}: x"), "5:38", (says,), {"a.pub": PUBLIC_KEY})


SIGNATURES = (
    Case("keys-of-a-mirror-are-a-list", _mirror("verify-signatures: [a.pub]"), "5:22", ("expected a mapping",)),
    Case("no-keys", _mirror("verify-signatures: {}"), "5:22", ('missing key "keys"',)),
    Case("keys-empty", _keys("keys: []"), "5:29", ("expected a list with at least one entry",)),
    Case("keys-text", _keys("keys: a.pub"), "5:29", ("expected a list", 'write ["a.pub"]')),
    Case("keys-missing", _keys("keys: [none.pub]"), "5:30", ("verify-signatures.keys[0]: ", "none.pub: no such file")),
    Case("keys-directory", _keys("keys: [.]"), "5:30", ("is not a regular file",)),
    Case("keys-many", _keys(f"keys: [{'a.pub,' * 21}]"), "5:29", ("the limit is 20",), {"a.pub": PUBLIC_KEY}),
    Case("key-of-a-service", _keys("keys: [awskms:///alias/x]"), "5:30", ("is not a file; save the public key",)),
    Case("key-of-a-token", _keys("keys: ['pkcs11:token=x']"), "5:30", ("is not a file; save the public key",)),
    Case("key-by-its-url", _keys("keys: ['https://a.example.com/x.pub']"), "5:30", ("is not a file",)),
    Case("key-misspelt", _keys("Keys: [a.pub]"), "5:23", ('unknown key "Keys"; did you mean "keys"?',)),
    _keyless("keyless"),
    _keyless("certificate-identity"),
    _keyless("certificate_oidc_issuer"),
    _keyless("rekor-url"),
    _key_file("", "a.pub is empty; expected a PEM public key", id="empty"),
    _key_file(b"\x30\x59", "a.pub is not PEM; convert it", id="der"),
    _key_file(
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "contains no valid public key", id="damaged"
    ),
    _key_file(PUBLIC_KEY * 2, "contains 2 keys", id="double"),
    _key_file("-----BEGIN EC PRIVATE KEY-----\n", "contains a private key, expected a public key", id="private"),
    _key_file("-----BEGIN CERTIFICATE-----\n", "contains a certificate, expected a public key", id="certificate"),
    Case(
        "defaults-with-a-missing-key",
        f"{HEAD}defaults: {{verify-signatures: {{keys: [none.pub]}}}}\n{MIRROR}",
        "2:39",
        ("defaults.verify-signatures.keys[0]: ", "none.pub: no such file"),
    ),
    Case(
        "signatures-of-v1",
        _mirror("verify-signatures: {keys: [a.pub]}\n  v1: only"),
        "3:11",
        ("images from v1 have no signatures, so `verify-signatures` would reject all of them",),
        {"a.pub": PUBLIC_KEY},
    ),
)

ON_DISK = (
    Case("base-without-a-bundle", _mirror("base: far-side.json"), "5:9", ("mirrors[0].base", "no target is a bundle")),
    Case("wildcard-to-one", _source("a.example.com/team/*"), "4:13", ("has no {repository}", '/{repository}"')),
    Case(
        "wildcard-by-v1",
        f"{HEAD}mirrors:\n- source: a.example.com/team/*\n  targets: ['b.example.com/*']\n  v1: only\n",
        "3:11",
        ("mirrors[0].source: the v1 protocol cannot list repositories; add a mirror for each",),
    ),
    Case(
        "wildcard-of-a-v1-registry",
        f"{HEAD}registries:\n  a.example.com: {{v1: only}}\n"
        "mirrors:\n- source: a.example.com/*\n  targets: ['b.example.com/*']\n",
        "5:11",
        ("the v1 protocol cannot list repositories; add a mirror for each",),
    ),
    Case(
        "wildcard-of-one",
        _target('"b.example.com/{repository}"'),
        "4:13",
        ("the source is a single repository",),
        fixed=("a.example.com/app", "a.example.com/app/*"),
    ),
    Case(
        "star-of-one",
        _target('"b.example.com/*"'),
        "4:13",
        ("targets[0]: the target contains `*`, but the source is a single repository",),
        fixed=("a.example.com/app", "a.example.com/app/*"),
    ),
    Case("bundle-to-one", _source('"in.tar:*"'), "4:13", ("has no {repository}", '/{repository}"')),
    Case("bundle-with-a-tag-as-target", _target('"out.tar:app:v1"'), "4:13", ('write "out.tar:app" to keep',)),
    Case(
        "base-for-a-layout",
        f"{HEAD}mirrors:\n- source: a.example.com/app\n  targets: ['oci:out']\n  base: far-side.json\n",
        "5:9",
        ("mirrors[0].base", "no target is a bundle"),
    ),
    Case("layout-to-one", _source('"oci:in:*"'), "4:13", ("has no {repository}", '/{repository}"')),
    Case("nul-in-a-layout", _target(r'"oci:a\0b"'), "4:13", ("a path cannot contain", "remove it")),
    Case("no-home-of-a-bundle", _target("~no-such-user/x.tar"), "4:13", ("no home directory", "use an absolute path")),
    Case("layout-with-a-tag-as-target", _target('"oci:out:app:v1"'), "4:13", ('write "oci:out:app" to keep',)),
    Case("layout-without-a-directory", _target('"oci::app"'), "4:13", ("expected oci:DIR or oci:DIR:REPOSITORY",)),
    Case("layout-without-a-repository", _target('"oci:out:"'), "4:13", ("the repository is missing",)),
    Case(
        "layout-onto-itself",
        f"{HEAD}mirrors:\n- source: oci:x/../y:a\n  targets: ['oci:./y:a']\n",
        "4:13",
        ("onto itself",),
    ),
    Case(
        "bundle-onto-itself", f"{HEAD}mirrors:\n- source: x.tar:a\n  targets: ['./x.tar:a']\n", "4:13", ("onto itself",)
    ),
    Case(
        "bundle-into-itself",
        f"{HEAD}mirrors:\n- source: x.tar:a\n  targets: ['y/../x.tar:b']\n",
        "4:13",
        ("is a bundle, which each run replaces as a whole, but mirrors[0] also reads from it",),
    ),
    Case(
        "bundle-with-two-bases",
        f"{HEAD}mirrors:\n- {{source: a.example.com/a, targets: [x.tar], base: i.json}}\n"
        "- {source: a.example.com/b, targets: [./x.tar]}\n",
        "4:39",
        ("mirrors[0] writes this bundle with a different `base`",),
    ),
    Case(
        "bundle-read-and-written",
        _wildcards(("a.example.com/app", "x.tar:a"), ("x.tar:b", "b.example.com/b")),
        "4:13",
        ("is a bundle, which each run replaces as a whole, but mirrors[1] also reads from it",),
    ),
)


def _top(keys: str) -> str:
    return f"{HEAD}{keys}\n{MIRROR}"


# Every key without an effect yet, with a value of the right type and one of a wrong type. Position: `top`, `registry`
# or `mirror`.
LATER_KEYS: tuple[tuple[str, str, str, str], ...] = (("registry", "reserve", "20", "some"),)
_LATER: dict[str, tuple[Callable[[str], str], int, int, str]] = {
    "top": (_top, 2, 1, ""),
    "registry": (_registry, 3, 19, 'registries."b.example.com".'),
}


def later(where: str, key: str, value: str) -> str:
    """Return a configuration with this key at one of the positions of `LATER_KEYS`."""
    return _LATER[where][0](f"{key}: {value}")


def _later(where: str, key: str, value: str, *says: str, id: str) -> Case:
    _, line, column, path = _LATER[where]
    at = f"{line}:{column + len(key) + 2}"
    return Case(f"later-{id}-{where}-{key}", later(where, key, value), at, (f"{path}{key}: ", *says))


NOT_IN_THIS_VERSION = (
    *(
        _later(where, key, right, "not in this version; remove the key", id=str(number))
        for number, (where, key, right, _) in enumerate(LATER_KEYS)
    ),
    *(
        _later(where, key, wrong, "not in this version; remove the key", id=f"wrong-{number}")
        for number, (where, key, _, wrong) in enumerate(LATER_KEYS)
    ),
)


def _retagged(source: str, *targets: str) -> str:
    """Return a configuration with one mirror with these targets."""
    return f"{HEAD}mirrors:\n- source: {source}\n  targets:\n" + "".join(f"  - '{one}'\n" for one in targets)


_OTHER = "- source: c.example.com/app{source}\n  targets: ['b.example.com/app:{target}']\n"
_DIGEST = f"sha256:{'a' * 64}"
TAG_TEMPLATES = (
    Case(
        "fixed-tag-for-several-tags",
        _retagged("a.example.com/app", "b.example.com/app:stable") + "  tags: [v1, v2]\n",
        "5:5",
        ("would give all images the tag stable, but the mirror may select several images", 'write "b.example.com/app"'),
        fixed=("app:stable", "app"),
    ),
    Case(
        "tag-template-for-a-digest",
        _retagged(f"a.example.com/app@{_DIGEST}", "b.example.com/app:{tag}-x"),
        "5:5",
        ("the source has a digest, but no tag to use for {tag}",),
        fixed=("{tag}-x", "stable"),
    ),
    Case(
        "tag-that-becomes-too-long",
        _retagged(f"a.example.com/app:{'v' * 120}", "b.example.com/app:{tag}-a-suffix"),
        "5:5",
        ("becomes", "a tag has at most 128 characters"),
    ),
    Case(
        "tag-template-with-an-invalid-character",
        _retagged("a.example.com/app", "b.example.com/app:{tag}+x"),
        "5:5",
        ("'b.example.com/app:{tag}+x'", "use '{tag}_x'"),
    ),
    Case("tag-template-twice", _retagged("a.example.com/app", "b.example.com/app:{tag}-{tag}"), "5:5", ("only once",)),
    Case(
        "tag-template-in-the-repository",
        _retagged("a.example.com/app", "b.example.com/app-{tag}"),
        "5:5",
        ("{tag} is allowed only in the tag, as in registry.example.com/app:{tag}-copy",),
    ),
    Case(
        "one-source-with-two-templates-that-may-give-one-tag",
        _retagged("a.example.com/app", "b.example.com/app:{tag}-x", "b.example.com/app"),
        "6:5",
        ("b.example.com/app is listed twice, and two images may get the same tag there",),
    ),
    Case(
        "one-image-with-one-tag-twice",
        _retagged("a.example.com/app:v1", "b.example.com/app:v1-x", "b.example.com/app:{tag}-x"),
        "6:5",
        ("two images may get the tag v1-x there",),
    ),
    Case(
        "two-sources-on-one-renamed-tag",
        _retagged("a.example.com/app:v1", "b.example.com/app:{tag}-x") + _OTHER.format(source=":1-x", target="v{tag}"),
        "7:13",
        ("mirrors[1] and mirrors[0] (line 3) may both write tag v1-x of b.example.com/app",),
    ),
    Case(
        "a-fixed-tag-that-a-source-may-have",
        _retagged("a.example.com/app", "b.example.com/app") + _OTHER.format(source=":1", target="stable"),
        "7:13",
        ("mirrors[1] and mirrors[0] (line 3) may both write tag stable of b.example.com/app",),
    ),
    Case(
        "templates-that-may-give-one-tag",
        _retagged("a.example.com/app", "b.example.com/app:{tag}-x") + _OTHER.format(source="", target="v{tag}"),
        "7:13",
        ("may both write the same tags of b.example.com/app",),
    ),
    Case(
        "new-tags-in-the-source-repository",
        _retagged("a.example.com/app", "a.example.com/app:{tag}-copy"),
        "5:5",
        ("would mirror onto itself", "the next run may copy the new tags again"),
    ),
    Case(
        "tags-that-move-in-a-circle",
        _retagged("a.example.com/app:v1", "b.example.com/app:v2")
        + "- source: b.example.com/app:v2\n  targets: ['a.example.com/app:v1']\n",
        "3:11",
        ("mirrors form a cycle",),
    ),
)

REFERRERS = (
    Case("referrers-text", _mirror("referrers: sometimes"), "5:14", ("expected true or false or a mapping",)),
    Case("referrers-empty", _mirror("referrers: {}"), "5:14", ()),
    Case(
        "referrers-name",
        _mirror("referrers: {include: [signatures]}"),
        "5:25",
        ('"signatures" is neither signature, sbom or attestation, nor an artifact type',),
        fixed=("signatures", "signature"),
    ),
    Case(
        "referrers-excluded",
        _mirror("referrers: {exclude: [application/spdx+json], require: [application/spdx+json]}"),
        "5:58",
        ('"application/spdx+json" is required, but `include` and `exclude` exclude it',),
    ),
    Case("recheck-number", _mirror("recheck: 24"), "5:12", ('write "24 s"',)),
    Case("recheck-long", _mirror("recheck: 999999 d"), "5:12", ("expected 0 ms..87600 h, got 999999 d",)),
)

INTERVALS = (
    Case("every-number", _mirror("every: 15"), "5:10", ('every: read as the number 15; write "15 s"',)),
    Case("every-m", _mirror("every: 15m"), "5:10", ('got "15m"; write "15 min"',)),
    Case("every-short", _mirror("every: 10 ms"), "5:10", ("expected 1 s..744 h, got 10 ms",)),
    Case(
        "every-of-all", f"{HEAD}defaults: {{every: 40 d}}\n{MIRROR}", "2:19", ("defaults.every: expected 1 s..744 h",)
    ),
    Case(
        "bundle-with-two-intervals",
        f"{HEAD}mirrors:\n- {{source: a.example.com/a, targets: [x.tar], every: 1 h}}\n"
        "- {source: a.example.com/b, targets: [./x.tar]}\n",
        "4:39",
        ("mirrors[0] writes this bundle with a different `every`",),
    ),
)

CASES: tuple[Case, ...] = (
    *(*FILE, *KEYS, *REGISTRIES, *LOCATIONS, *WILDCARDS, *PLATFORMS),
    *(*TAGS, *SIGNATURES, *REFERRERS, *ON_DISK, *NOT_IN_THIS_VERSION, *TAG_TEMPLATES, *INTERVALS),
)
