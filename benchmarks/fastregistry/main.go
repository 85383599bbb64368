// Command fastregistry is a read-only registry that uses as little CPU time as possible. It answers pings and requests
// for tag lists and manifests from memory, over HTTP/1.1 with persistent connections. Its repositories are app-0, app-1,
// ..., each with the tags t-0000, t-0001, ... It writes an access log in Apache's combined format to standard output.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
)

const mediaType = "application/vnd.oci.image.manifest.v1+json"

var (
	responses = map[string]response{} // by request path
	lastPage  = newResponse("200 OK", "application/json", `{"tags":null}`, "")
	notFound  = newResponse("404 Not Found", "application/json", `{"errors":[{"code":"NAME_UNKNOWN"}]}`, "")
	accessLog = bufio.NewWriterSize(os.Stdout, 1<<16)
	logLock   sync.Mutex
)

// A response to a GET request. The response to a HEAD request is its head, the first bytes of the whole response.
type response struct {
	status string
	whole  []byte
	head   int
}

// newResponse returns a response. more: additional header lines, each with its line end.
func newResponse(status, contentType, body, more string) response {
	head := fmt.Sprintf("HTTP/1.1 %s\r\nDocker-Distribution-Api-Version: registry/2.0\r\nContent-Type: %s\r\n"+
		"Content-Length: %d\r\nX-Content-Type-Options: nosniff\r\nDate: Sat, 28 Nov 2026 00:00:00 GMT\r\n%s\r\n",
		status, contentType, len(body), more)
	return response{status[:3], []byte(head + body), len(head)}
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	repositories := flag.Int("repositories", 10, "number of repositories")
	tags := flag.Int("tags", 1000, "tags of each repository")
	delay := flag.Duration("delay", 0, "time before each response")
	flag.Parse()
	runtime.GOMAXPROCS(1) // the tool needs the other cores
	responses["/v2/"] = newResponse("200 OK", "application/json", "{}", "")
	for number := range *repositories {
		addRepository(fmt.Sprintf("app-%d", number), *tags)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	go flushLog()
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(connection, *delay)
	}
}

// addRepository stores the responses for one repository, its tag list and its manifests.
func addRepository(repository string, tags int) {
	names := make([]string, tags)
	for number := range names {
		names[number] = fmt.Sprintf("t-%04d", number)
		body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",`+
			`"digest":"sha256:%x","size":2},"layers":[]}`, mediaType, sha256.Sum256([]byte(repository+names[number])))
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(body)))
		headers := fmt.Sprintf("Docker-Content-Digest: %s\r\nEtag: \"%s\"\r\n", digest, digest)
		responses["/v2/"+repository+"/manifests/"+names[number]] = newResponse("200 OK", mediaType, body, headers)
	}
	list := fmt.Sprintf(`{"name":%q,"tags":["%s"]}`, repository, strings.Join(names, `","`))
	responses["/v2/"+repository+"/tags/list"] = newResponse("200 OK", "application/json", list, "")
}

// serve answers the requests of one connection until the client closes it.
func serve(connection net.Conn, delay time.Duration) {
	defer connection.Close()
	reader := bufio.NewReader(connection)
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSpace(line)
		agent := []byte{}
		for {
			field, err := reader.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(field) <= 2 {
				break
			}
			if value, found := bytes.CutPrefix(field, []byte("User-Agent: ")); found {
				agent = bytes.Clone(bytes.TrimSpace(value))
			}
		}
		method, rest, _ := strings.Cut(line, " ")
		target, _, _ := strings.Cut(rest, " ")
		found := find(target)
		data := found.whole
		if method == "HEAD" {
			data = data[:found.head]
		}
		time.Sleep(delay)
		if _, err := connection.Write(data); err != nil {
			return
		}
		logRequest(line, found.status, len(data)-found.head, agent)
	}
}

// find returns the response for a request target: a path, with a query if there is one.
func find(target string) response {
	path, query, _ := strings.Cut(target, "?")
	found, exists := responses[path]
	if !exists {
		return notFound
	}
	if strings.Contains(query, "last=") { // each list has a single page, so nothing follows
		return lastPage
	}
	return found
}

// logRequest adds a line to the access log. size: bytes of the response body.
func logRequest(line, status string, size int, agent []byte) {
	logLock.Lock()
	defer logLock.Unlock()
	fmt.Fprintf(accessLog, "127.0.0.1 - - [] \"%s\" %s %d \"\" \"%s\"\n", line, status, size, agent)
}

// flushLog writes the buffered access log to standard output every 10 ms.
func flushLog() {
	for {
		time.Sleep(10 * time.Millisecond)
		logLock.Lock()
		accessLog.Flush()
		logLock.Unlock()
	}
}
