"""Registries for tests: real ones, and one that can be told to misbehave. A tour for newcomers.

*Real* (`real.RealRegistry`; fixtures `source`, `target`, `registry_factory`): Debian's docker-registry on a loopback
port; plain, with Basic or token authentication, with TLS or client certificates. Its access log is the witness of what
the tool asked: `mark()` forgets what was, `requests()`, `counts()` and `writes()` tell what came since, without our own
requests. Damage is done straight in its storage: `drop_blob`, `truncate_blob`, `flip_byte` and others (`damage`).

    def test_a_second_run_uploads_nothing(source, target, mirror_run):
        seed(source, "app", images=3, index=True)            # tests.seeding; tests.images makes single images
        mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}], source, target)
        mirror_run.sync()
        target.mark()
        mirror_run.sync()
        assert [] == target.writes()
        assert_equal(source, "app", target)                  # tests.oracle: walks and hashes everything

*Scripted* (`scripted.ScriptedRegistry`; fixture `scripted`, a factory): a strict registry in this process, over real
HTTP/1.1. `features` are lasting differences (`features.Features`), `fault(...)` adds a rule for single requests
(`faults.Fault`), `hook` sees every request. It answers `requests()` and `counts()` as a real one does; `log` has the
headers, lengths, times and connections too. `load(repository, graph)` fills it without a request.

    def test_a_cut_blob_is_read_again(scripted):
        registry = scripted(page=50, bearer=True, users={"acme": "secret"})
        graph = Graph("cut")
        graph.platforms("v1")
        registry.load("app", graph)
        cut = registry.fault("GET blob", nth=2, cut_after=1024)                      # bytes of the body
        registry.fault("PUT manifest", times=FOREVER, reference="v1", status=429, headers=[("Retry-After", "1")])
        held = registry.fault("PUT upload", stall=threading.Event())                  # held.stall.set() lets it go on
        ...
        assert cut.fired.wait(60)                                                      # rather than to sleep

A rule applies once, from its `nth` match on, unless `times` says more. Without `after` a reply that is given (`status`)
comes *instead* of what was asked; with `after=True` the registry does it first: a commit whose answer is lost is
`fault("PUT upload", after=True, reset=True)`. Rules of the kind `connect` meet connections before TLS.

*In between* (`wires`): `Pipe`, a TCP relay that is slow or freezes; `Front`, an HTTP proxy that counts, answers and
alters.
*Beside* (`tokens`, `blobhost`): a token service that real and scripted registries trust; a host for redirected blobs.

*Kinds* of requests have the names of the report: `GET tags`, `HEAD manifest`, `PUT manifest`, `GET blob`,
`POST upload`, `POST mount`, `PATCH upload`, `PUT upload` (or `PUT blob`), `DELETE upload`, `GET token`, `GET ping` ...
(`access`).

*Another implementation* is a subclass of `process.RegistryProcess`: a command line, and how a line of its log reads.
The v1 protocol would be a further handler beside `v2.Protocol`.
"""
