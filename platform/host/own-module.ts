/** Modules of this program that are run as processes of their own: JavaScript where it was built, else TypeScript. */
import { createRequire } from 'node:module';
import { extname } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

/**
 * What Node is called with to run a module: its file (`./watchdog`, without an extension) beside the module whose
 * `import.meta.url` is given, after the loader of TypeScript where that is what it is written in.
 */
export function ownModule(moduleUrl: string, path: string): string[] {
  const extension = extname(new URL(moduleUrl).pathname);
  const file = fileURLToPath(new URL(`${path}${extension}`, moduleUrl));
  if (extension === '.js') return [file];
  const loader = pathToFileURL(createRequire(moduleUrl).resolve('tsx')).href;
  return ['--import', loader, file];
}
