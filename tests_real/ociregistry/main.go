// A registry in memory from the library cuelabs.dev/go/oci/ociregistry, which brings no command of its own.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"runtime/debug"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	pages := flag.Int("pages", 0, "refuse to list more names than this at once")
	links := flag.Bool("links", true, "say where the next page is")
	immutable := flag.Bool("immutable", false, "a tag that is there stays what it is")
	version := flag.Bool("version", false, "print the library's version and end")
	flag.Parse()
	if *version {
		fmt.Println(libraryVersion())
		return
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("listening on %v", listener.Addr())
	store := ocimem.NewWithConfig(&ocimem.Config{ImmutableTags: *immutable})
	options := &ociserver.Options{MaxListPageSize: *pages, OmitLinkHeaderFromResponses: !*links}
	log.Fatal(http.Serve(listener, ociserver.New(store, options)))
}

func libraryVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "cuelabs.dev/go/oci/ociregistry" {
				return module.Path + " " + module.Version
			}
		}
	}
	return "unknown"
}
