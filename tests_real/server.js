// A v1 registry for development and tests: the npm package docker-registry-server, with its metadata in memory.
//
//     NODE_PATH=.venv/node/node_modules node tests_real/server.js DIRECTORY [PORT [USER:PASSWORD]]
//
// Layers go below DIRECTORY. It prints the port on which it listens, on loopback. `make test-old` installs the package.
process.EventEmitter = require("events"); // the package was written for a Node that had it there

// Its database is compiled code that no Node of today can load; one in memory serves as well.
const Module = require("module");
const load = Module._load;
Module._load = function (name, ...rest) {
  if (name !== "level") return load.call(this, name, ...rest);
  const levelup = load.call(this, "levelup", ...rest);
  const memdown = load.call(this, "memdown", ...rest);
  return (path, options) => levelup(path, { ...(options || {}), db: memdown });
};

const registry = require("docker-registry-server/server");
const [directory, port, login] = process.argv.slice(2);
const authenticate = (user, done) =>
  user && `${user.name}:${user.pass}` === login ? done(null, user.name) : done(new Error("Unknown user"));
const server = registry({ dir: directory, ...(login ? { authenticate } : {}) });
server.listen(Number(port || 0), "127.0.0.1", () => console.log(server.address().port));
