// Run by npm after an install in the working tree: builds the program, where what builds it was installed (not by --omit=dev).
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

let loader;
try {
  loader = createRequire(import.meta.url).resolve('tsx');
} catch {
  process.exit(0);
}
const build = fileURLToPath(new URL('build.ts', import.meta.url));
process.exit(spawnSync(process.execPath, ['--import', loader, build], { stdio: 'inherit' }).status ?? 1);
