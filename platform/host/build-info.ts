/** Which build of the program this is: its version, and, where it was built, its commit and the build id of its workflows. */
import { existsSync, readFileSync } from 'node:fs';
import { z } from 'zod';

const PACKAGE = new URL('../../package.json', import.meta.url);
/** Written by the build (packaging/build.ts); not there where the program runs from its TypeScript. */
export const BUILD_FILE = 'build-info.json';
const BUILD = new URL(`../../${BUILD_FILE}`, import.meta.url);

const buildInfo = z.object({
  /** The git commit that was built; `null` outside of a repository. */
  commit: z.string().nullable(),
  /** What Temporal tells the versions of the workers apart by. */
  build_id: z.string(),
});
export type BuildInfo = z.infer<typeof buildInfo>;

/** The package's version, as its `package.json` has it. Throws when that can't be read. */
export function readPackageVersion(): string {
  return z.object({ version: z.string() }).parse(JSON.parse(readFileSync(PACKAGE, 'utf8'))).version;
}

/** What the build has noted of itself; `null` where the program was not built. Throws when the note can't be read. */
export function readBuildInfo(): BuildInfo | null {
  return existsSync(BUILD) ? buildInfo.parse(JSON.parse(readFileSync(BUILD, 'utf8'))) : null;
}

/** Version, commit and build id in one line, or as JSON for programs. */
export function describeBuild(json: boolean): string {
  const version = readPackageVersion();
  const built = readBuildInfo();
  if (json) return JSON.stringify({ version, commit: built?.commit ?? null, build_id: built?.build_id ?? null });
  if (built === null) return `mooring ${version}, not built: run from its TypeScript`;
  return `mooring ${version}, commit ${built.commit ?? 'unknown'}, build id ${built.build_id}`;
}
