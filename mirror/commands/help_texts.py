"""The examples and exit codes at the end of each command's help."""

from __future__ import annotations

from collections.abc import Mapping

USAGE_ERROR = "the command line or the configuration is wrong"
NOT_FOUND = "usage error, or the file or directory does not exist"
LOCAL_ERROR = "local error, for example a full disk or missing permissions"
STOPPED = "stopped by SIGINT or SIGTERM"
BAD_BUNDLE = "the bundle or layout is damaged or incomplete"

_READS_REGISTRIES = {
    "2": USAGE_ERROR,
    "3": "an object failed an integrity or safety check; see the error message",
    "4": LOCAL_ERROR,
    "130, 143": STOPPED,
}


def epilog(examples: Mapping[str, str], exit_codes: Mapping[str, str], note: str = "") -> str:
    """Return the end of a command's help: examples, an optional note, and exit codes.

    examples: command lines, each with an explanation or an empty text. exit_codes: exit codes with their meanings."""
    columns = max(map(len, examples))
    lines = ["examples:" if len(examples) > 1 else "example:"]
    lines += [f"  {command:{columns}}  {text}".rstrip() for command, text in examples.items()]
    lines += ["", note] if note else []
    codes = sorted(exit_codes, key=lambda code: int(code.partition(",")[0]))
    width = max(map(len, codes))
    lines += ["", "exit codes:", *(f"  {code:{width}}  {exit_codes[code]}" for code in codes)]
    return "\n".join(lines)


PROGRAM = """\
exit codes: 0 success; 1 an image or a host failed, run again; 2 usage or
configuration error; 3 integrity or safety check failed, see the error message;
4 local error; 10 `plan --exit-code`: a sync would change something; 75 another
run holds the lock; 130, 143 stopped by a signal
"""

# The end of the help, by command. A test parses each example.
EPILOGS = {
    "sync": epilog(
        {
            "mirror sync prod.yaml": "",
            "mirror sync prod.yaml -q": "prints only failures and warnings",
            "mirror sync prod.yaml --only 'quay.io/*'": "copies only these images",
        },
        {
            "0": "every selected image is on every target",
            "1": "some images failed, but all others are on the targets; run again",
            **_READS_REGISTRIES,
            "75": "another run holds the lock",
        },
    ),
    "copy": epilog(
        {
            "mirror copy docker.io/library/alpine:3.20 registry.example.com/hub/alpine": "",
            "mirror copy quay.io/team/app oci:export --semver '>=2' --platform linux/amd64": "",
            "mirror copy localhost:5000/app r.example.com/app --plain-http localhost:5000": "",
        },
        {
            "0": "every selected image is on every target",
            "1": "some images failed, but all others are on the targets; run again",
            **_READS_REGISTRIES,
            "75": "another run with the same arguments holds the lock",
        },
        "Without a tag, a digest, or an option that selects tags, every tag is copied.",
    ),
    "plan": epilog(
        {"mirror plan prod.yaml": "", "mirror plan prod.yaml --json": "for programs"},
        {
            "0": "the plan is complete",
            "1": "a source or target could not be read",
            **_READS_REGISTRIES,
            "10": "with --exit-code: a sync would change something",
        },
    ),
    "verify": epilog(
        {
            "mirror verify prod.yaml": "",
            "mirror verify prod.yaml --deep --report verify.json": "also hashes every blob",
        },
        {
            "0": "every selected image is complete on every target",
            "1": "an image is missing, differs or could not be read",
            **_READS_REGISTRIES,
        },
    ),
    "prune": epilog(
        {
            "mirror prune prod.yaml --plan prune.json": "finds the tags to delete",
            "mirror prune prod.yaml --apply prune.json": "deletes them",
        },
        {
            "0": "the plan was written, or everything in it was deleted",
            "1": "a tag was not deleted, or a source or target could not be read",
            **_READS_REGISTRIES,
            "2": "usage error, or the plan is too old, or for another configuration",
            "75": "another run holds the lock",
        },
    ),
    "validate": epilog(
        {"mirror validate prod.yaml": "", "mirror validate prod.yaml --secrets": "a missing secret is an error"},
        {"0": "the configuration is valid", "2": "the configuration is not valid", "4": LOCAL_ERROR},
    ),
    "lock": epilog(
        {
            "mirror lock prod.yaml": "writes prod.lock",
            "mirror plan prod.yaml --locked prod.lock": "shows which tags changed",
            "mirror sync prod.yaml --locked prod.lock": "copies the locked images",
        },
        {
            "0": "the image lock was written",
            "1": "a source could not be read; nothing was written",
            **_READS_REGISTRIES,
        },
    ),
    "explain": epilog(
        {"mirror explain prod.yaml docker.io/library/alpine:3.20": ""},
        {
            "0": "the explanation is complete",
            "1": "a source or target could not be read",
            **_READS_REGISTRIES,
            "2": "usage error, or no mirror has this source or target",
        },
    ),
    "bundle": epilog(
        {"mirror bundle verify export.tar": "", "mirror bundle list export.tar": ""},
        {"0": "done", "2": NOT_FOUND, "3": BAD_BUNDLE, "4": LOCAL_ERROR, "130, 143": STOPPED},
    ),
    "bundle verify": epilog(
        {"mirror bundle verify export.tar": ""},
        {"0": "nothing is damaged or missing", "2": NOT_FOUND, "3": BAD_BUNDLE, "4": LOCAL_ERROR, "130, 143": STOPPED},
    ),
    "bundle list": epilog(
        {"mirror bundle list export.tar": ""},
        {"0": "the list is complete", "2": NOT_FOUND, "3": BAD_BUNDLE, "4": LOCAL_ERROR, "130, 143": STOPPED},
    ),
    "inventory": epilog(
        {"mirror inventory import.yaml > far-side.json": "for an export with --base"},
        {"0": "the inventory is complete", "1": "a repository could not be read", **_READS_REGISTRIES},
    ),
    "serve": epilog(
        {"mirror serve export.tar --listen 127.0.0.1:5000": ""},
        {
            "2": NOT_FOUND,
            "3": BAD_BUNDLE,
            "4": LOCAL_ERROR,
            "75": "another process writes to the layout",
            "130, 143": STOPPED,
        },
    ),
    "convert": epilog(
        {
            "mirror convert --from regsync regsync.yml -o mirror.yaml": "",
            "mirror convert --from skopeo sync.yaml --destination r.example.com/hub": "",
        },
        {
            "0": "the file was converted",
            "1": "converted, but the result does not copy all images: see the notes",
            "2": "invalid, nothing can be converted, or FILE of -o must not be replaced",
            "4": LOCAL_ERROR,
        },
    ),
    "report": epilog(
        {
            "mirror report /var/lib/mirror --html report.html": "",
            "mirror report --merge shard-*/report.json --html report.html": "for all shards",
            "mirror report --merge a.json b.json > both.json": "for both syncs",
        },
        {"0": "done", "2": "usage error, or the report does not exist", "4": LOCAL_ERROR},
    ),
    "schema": epilog({"mirror schema > mirror.schema.json": ""}, {"0": "done", "4": LOCAL_ERROR}),
    "help": epilog(
        {"mirror help sync": "", "mirror help bundle verify": ""}, {"0": "done", "2": "there is no such command"}
    ),
}
