// Loaded into a process before all else (NODE_OPTIONS=--import): as long as there is a file MOORING_TEST_DISK_FULL, no file
// below the folder MOORING_TEST_DISK grows. What is there can be written over, as on a disk that is full. For where a test
// may not mount a disk of its own.
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { resolve } from 'node:path';

const folder = process.env.MOORING_TEST_DISK;
const mark = process.env.MOORING_TEST_DISK_FULL;
if (folder !== undefined && mark !== undefined) {
  const { openSync, closeSync, writeSync, writeFileSync, appendFileSync, mkdirSync } = fs;
  const paths = new Map();
  const isHere = (path) => typeof path === 'string' && resolve(path).startsWith(`${resolve(folder)}/`);
  const isFull = (path) => isHere(path) && fs.existsSync(mark);
  const noRoom = (path) => {
    const error = new Error(`ENOSPC: no space left on device, write '${path}'`);
    return Object.assign(error, { code: 'ENOSPC', errno: -28, syscall: 'write', path });
  };
  const pathOf = (file) => (typeof file === 'number' ? paths.get(file) : String(file));
  fs.openSync = (path, ...rest) => {
    const file = openSync(path, ...rest);
    if (isHere(path)) paths.set(file, String(path));
    return file;
  };
  fs.closeSync = (file) => {
    paths.delete(file);
    closeSync(file);
  };
  fs.writeSync = (file, bytes, ...rest) => {
    const path = paths.get(file);
    if (path !== undefined && isFull(path)) {
      // Only (bytes, offset, length, position) names a place in the file; anything else may make it grow.
      const position = typeof rest[2] === 'number' ? rest[2] : null;
      const end = position === null ? Number.POSITIVE_INFINITY : position + (rest[1] ?? bytes.length);
      if (end > fs.fstatSync(file).size) throw noRoom(path);
    }
    return writeSync(file, bytes, ...rest);
  };
  for (const [name, write] of Object.entries({ writeFileSync, appendFileSync }))
    fs[name] = (file, ...rest) => {
      const path = pathOf(file);
      if (isFull(path)) throw noRoom(path);
      return write(file, ...rest);
    };
  fs.mkdirSync = (path, ...rest) => {
    if (isFull(path) && !fs.existsSync(path)) throw noRoom(path);
    return mkdirSync(path, ...rest);
  };
  syncBuiltinESMExports();
}
