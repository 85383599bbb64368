"""Registries for tests: real ones, and one whose behaviour can be configured.

*Real* (`real.RealRegistry`; fixtures `source`, `target`, `registry_factory`): Debian's docker-registry on a loopback
port, without authentication, with Basic or token authentication, with TLS or client certificates. Its access log shows
the requests of the tool: `mark()` excludes earlier requests, and `requests()`, `counts()` and `writes()` return the
later ones, without those of the tests' own client. `drop_blob`, `truncate_blob`, `flip_byte` and others (`damage`)
damage its storage directly.

    def test_a_second_run_uploads_nothing(source, target, mirror_run):
        seed(source, "app", images=3, index=True)            # tests.support.seeding; or tests.support.images
        mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}], source, target)
        mirror_run.sync()
        target.mark()
        mirror_run.sync()
        assert [] == target.writes()
        assert_equal(source, "app", target)                  # tests.support.oracle: reads and hashes everything

*Scripted* (`scripted.ScriptedRegistry`; fixture `scripted`, a factory): a strict registry in this process, over real
HTTP/1.1. `features` are permanent differences (`features.Features`), `fault(...)` adds a rule for single requests
(`faults.Fault`), and `hook` sees every request. It has `requests()` and `counts()` like a real one; `log` also has
headers, lengths, times and connections. `load(repository, graph)` fills it without a request.

    def test_a_truncated_blob_is_read_again(scripted):
        registry = scripted(page=50, bearer=True, users={"acme": "secret"})
        graph = Graph("cut")
        graph.platforms("v1")
        registry.load("app", graph)
        cut = registry.fault("GET blob", nth=2, cut_after=1024)                      # bytes of the body
        registry.fault("PUT manifest", times=FOREVER, reference="v1", status=429, headers=[("Retry-After", "1")])
        held = registry.fault("PUT upload", stall=threading.Event())                  # held.stall.set() continues it
        ...
        assert cut.fired.wait(60)                                                      # instead of sleeping

A rule applies once, from its `nth` match on, unless `times` says more. Without `after`, a given reply (`status`)
replaces the request. With `after=True` the request is carried out first: `fault("PUT upload", after=True, reset=True)`
is a commit whose response is lost. Rules of the kind `connect` apply to connections before TLS.

*Relays* (`wires`): `Pipe`, a TCP relay that is slow or stalls; `Front`, an HTTP proxy that counts, answers and changes.
*Services* (`tokens`, `blobhost`): a token service that real and scripted registries trust; a host for redirected blobs.

*Kinds* of requests are named as in the report: `GET tags`, `HEAD manifest`, `PUT manifest`, `GET blob`, `POST upload`,
`POST mount`, `PATCH upload`, `PUT upload` (or `PUT blob`), `DELETE upload`, `GET token`, `GET ping` ... (`access`).

*Another implementation* is a subclass of `process.RegistryProcess`: a command line, and a parser for lines of its log.
"""
