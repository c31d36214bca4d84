/** `npm run promises`: writes what the working tree promises, by its version, into `test/promises/`. */
import { writeFile } from 'node:fs/promises';
import { readPackageVersion } from '../../platform/host/build-info.ts';
import { startHarness } from '../support/harness.ts';
import { collectPromises } from './promises.ts';

const harness = await startHarness();
try {
  const document: unknown = await (await fetch(`${harness.stack.apiUrl}/openapi.json`)).json();
  const file = new URL(`${readPackageVersion()}.json`, import.meta.url);
  await writeFile(file, `${JSON.stringify(await collectPromises(document))}\n`);
  console.log(`wrote ${file.pathname}`);
} finally {
  await harness.close();
}
