// A registry that answers pings, lists of tags and requests for manifests from memory, over HTTP/1.1 with persistent
// connections, at the least cost. Its repositories are app-0, app-1, ... with the tags t-0000, t-0001, ... It writes an
// access log in Apache's combined format to standard output.
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
	responses = map[string]response{} // by path
	lastPage  = newResponse("200 OK", "application/json", `{"tags":null}`, "")
	notFound  = newResponse("404 Not Found", "application/json", `{"errors":[{"code":"NAME_UNKNOWN"}]}`, "")
	accessLog = bufio.NewWriterSize(os.Stdout, 1<<16)
	logLock   sync.Mutex
)

// A response to GET, and the length of its head, which is the response to HEAD.
type response struct {
	status string
	whole  []byte
	head   int
}

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
		said := found.whole
		if method == "HEAD" {
			said = said[:found.head]
		}
		time.Sleep(delay)
		if _, err := connection.Write(said); err != nil {
			return
		}
		note(line, found.status, len(said)-found.head, agent)
	}
}

func find(target string) response {
	path, query, _ := strings.Cut(target, "?")
	found, exists := responses[path]
	if !exists {
		return notFound
	}
	if strings.Contains(query, "last=") { // each list has one page
		return lastPage
	}
	return found
}

func note(line, status string, size int, agent []byte) {
	logLock.Lock()
	defer logLock.Unlock()
	fmt.Fprintf(accessLog, "127.0.0.1 - - [] \"%s\" %s %d \"\" \"%s\"\n", line, status, size, agent)
}

func flushLog() {
	for {
		time.Sleep(10 * time.Millisecond)
		logLock.Lock()
		accessLog.Flush()
		logLock.Unlock()
	}
}
