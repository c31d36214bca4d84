/** The workflows' bundle that is made once for all test files (global-setup.ts): to make one costs seconds. */
import { readFile, writeFile } from 'node:fs/promises';
import { z } from 'zod';
import { workflowBundle } from '../../worker/workflow-bundle.ts';

const bundleFile = z.object({ code: z.string(), sourceMap: z.string() });
export type TestBundle = z.infer<typeof bundleFile>;

/** Makes the bundle and writes it to `file`. */
export async function writeTestBundle(file: string): Promise<void> {
  await writeFile(file, JSON.stringify(await workflowBundle()));
}

/** The bundle of workers that are not versioned; made here where no run of the tests has made one. */
export async function testBundle(): Promise<TestBundle> {
  const { MOORING_TEST_BUNDLE: file } = process.env;
  return file ? bundleFile.parse(JSON.parse(await readFile(file, 'utf8'))) : workflowBundle();
}
