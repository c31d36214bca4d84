/**
 * What the program is made of (`npm run sbom`): a bill of materials in CycloneDX beside what was built, and its licences. npm makes
 * it from the versions and hashes that the package is published with.
 */
import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { z } from 'zod';

/** Licences that ask no more than to be named, and that the MPL-2.0 lives with. */
const FREE = new Set([
  ...['0BSD', 'Apache-2.0', 'BSD-2-Clause', 'BSD-3-Clause', 'BlueOak-1.0.0', 'CC-BY-4.0', 'ISC', 'MIT', 'Unlicense'],
  'Apache-2.0 AND MIT',
]);
/** Packages whose licence is in their papers, and not in their package.json. */
const BY_THEIR_PAPERS: Readonly<Record<string, string>> = { unionfs: 'Unlicense' };

const named = z.object({ id: z.string().optional(), name: z.string().optional() });
const bill = z.looseObject({
  components: z.array(
    z.looseObject({
      name: z.string(),
      version: z.string(),
      hashes: z.array(z.unknown()).optional(),
      licenses: z.array(z.object({ license: named.optional(), expression: z.string().optional() })).optional(),
    }),
  ),
});

/** A package that the program is installed with. */
export interface Component {
  readonly name: string;
  readonly version: string;
  /** As SPDX names it; `null` where nobody says. */
  readonly licence: string | null;
  /** Whether its content is known by a hash. */
  readonly isHashed: boolean;
}

/** Writes `sbom.cdx.json` into a folder that the program was built into, and returns what is in it. Throws what npm says. */
export async function writeBillOfMaterials(folder: string): Promise<Component[]> {
  const { stdout } = await promisify(execFile)('npm', ['sbom', '--package-lock-only', '--sbom-format', 'cyclonedx'], {
    cwd: folder,
    maxBuffer: 64 * 1024 * 1024,
  });
  const { components } = bill.parse(JSON.parse(stdout));
  await writeFile(join(folder, 'sbom.cdx.json'), stdout);
  return components.map(({ name, version, hashes, licenses }) => {
    const [first] = licenses ?? [];
    const licence = first?.expression ?? first?.license?.id ?? first?.license?.name ?? BY_THEIR_PAPERS[name] ?? null;
    return { name, version, licence, isHashed: (hashes?.length ?? 0) > 0 };
  });
}

/** The components that somebody must look at: of a licence that is not among those that ask nothing, or without a hash. */
export function doubtful(components: readonly Component[]): string[] {
  return components
    .filter(({ licence, isHashed }) => !isHashed || licence === null || !FREE.has(licence))
    .map(
      ({ name, version, licence, isHashed }) => `${name} ${version}: ${isHashed ? `licence ${licence}` : 'no hash'}`,
    );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const components = await writeBillOfMaterials(fileURLToPath(new URL('../dist/mooring', import.meta.url)));
  const counts = new Map<string, number>();
  for (const { licence } of components)
    counts.set(licence ?? 'none named', (counts.get(licence ?? 'none named') ?? 0) + 1);
  for (const [licence, count] of [...counts].sort(([, one], [, other]) => other - one))
    console.log(`${String(count).padStart(4)}  ${licence}`);
  console.log(`dist/mooring/sbom.cdx.json: ${components.length} packages`);
  const problems = doubtful(components);
  for (const problem of problems) console.error(`look at ${problem}`);
  process.exitCode = problems.length === 0 ? 0 : 1;
}
