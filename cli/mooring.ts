#!/usr/bin/env node
/**
 * Where `mooring` begins: what it needs of Node is looked at before any code is loaded that an older one can't read.
 */
const NEEDED = [20, 3] as const;

const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
if (major < NEEDED[0] || (major === NEEDED[0] && minor < NEEDED[1])) {
  console.error(
    `error: mooring needs Node ${NEEDED.join('.')} or later, and this is ${process.version}: install a newer one`,
  );
  process.exit(1);
}
const { runProgram } = await import('./program.ts');
try {
  await runProgram(process.argv.slice(2));
} catch (error) {
  const { printFailure } = await import('./failure.ts');
  // What a command has left open must not keep it: a service manager waits for its end.
  process.exit(printFailure(error, process.argv.includes('--json')));
}

export {};
