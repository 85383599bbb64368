"""Default hints for failures whose errors contain no hint, by error code."""

from __future__ import annotations

_MALICIOUS = "treat the content as malicious until this is explained"
_CHANGED = (
    "the registry is damaged or malicious, or the content was changed in transit: find the cause before you use it"
)

# docs/operations.md, "Error codes", says more about each code.
REMEDIES = {
    "config_invalid": "check the configuration with `mirror validate CONFIG`",
    "ref_invalid": "find out who pushed a tag or repository with this name, or exclude it",
    "auth_failed": "check the user name and the secret for this host",
    "auth_denied": "give this user permission to pull from the source, and to pull from and push to the target",
    "not_found": "check the name; if it is the repository of a target, create it",
    "nothing_selected": "correct the rules of the mirror",
    "tag_count": "check whether the source lost tags; otherwise correct the rules or the limit",
    "blob_missing": "run `mirror sync --deep CONFIG`; check the target's storage and its garbage collection",
    "rate_limited": "run again later, log in, or set `rate` for this host",
    "net_error": "run again; if the failure persists, check the network",
    "tls_error": "set `tls: {ca: FILE}` for this host, or have its certificate renewed",
    "timeout": "run again; if the failure persists, check the registry, or raise `timeouts`",
    "too_slow": "run again; if the failure persists, lower `parallel`, or check the network",
    "truncated": "run again; if the failure persists, check the proxies in front of the registry",
    "bad_response": "check the registry's log",
    "digest_mismatch": _CHANGED,
    "size_mismatch": _CHANGED,
    "type_mismatch": _CHANGED,
    "manifest_invalid": "push the image again with a current tool, or exclude the tag",
    "manifest_ambiguous": _MALICIOUS,
    "manifest_too_big": "push a smaller manifest (an index can be split), or exclude the tag",
    "not_signed": "sign the image, or add its key to `verify-signatures`",
    "too_deep": _MALICIOUS,
    "too_many": "select fewer tags, or check the registry",
    "target_conflict": "give one of the mirrors another target, or select other tags",
    "unsafe_realm": "if the token service is correct, add its host to `token-realms`",
    "unsafe_redirect": "if the redirect is correct, add its host to `allow-hosts`",
    "unsafe_location": "if the location is correct, add its host to `allow-hosts`",
    "unsafe_link": "check the registry's configuration: behind a proxy, it may not know its public host name",
    "unsafe_path": "treat the registry or medium as malicious until this is explained",
    "unsafe_link_member": _MALICIOUS,
    "bundle_invalid": "run `mirror bundle verify` for details, or copy the bundle again",
    "bundle_incomplete": "copy the bundle again, or import its base first",
    "v1_invalid": "push the image again, or exclude it",
    "bomb": _MALICIOUS,
    "target_full": "free space on the target, or raise its quota; then run again",
    "target_lied": "check the target before you trust it",
    "tag_moved": "run `mirror sync CONFIG`",
    "tag_immutable": "find out why the tag has changed; push under another tag, or remove the rule",
    "local_full": "free space, or set `spool` or `spool-max`",
    "local_io": "check that the file exists and that this user has permission to access it",
    "lock_busy": "wait until the other run has ended, or use `--lock-wait`",
    "prune_refused": "check the plan and the targets, then create a new plan",
    "internal_error": "report this bug, with a log of level `debug`",
    "interrupted": "run again",
    "deadline": "run again, or set a later `--deadline`",
}
