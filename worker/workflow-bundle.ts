/** The workflows as the one file that the SDK's sandbox runs: as the build has left it, or made when it is asked for. */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { bundleWorkflowCode, DefaultLogger, type WorkflowBundleWithSourceMap } from '@temporalio/worker';

const EXTENSION = extname(new URL(import.meta.url).pathname);
const workflowModule = (name: string) => fileURLToPath(new URL(`../workflows/${name}${EXTENSION}`, import.meta.url));

/** Goes into the bundle of a worker whose telemetry is on. */
export const TRACING_INTERCEPTORS = createRequire(import.meta.url).resolve(
  '@temporalio/interceptors-opentelemetry/lib/workflow-interceptors',
);
/** Goes into the bundle of a worker that is versioned. */
export const VERSIONING = workflowModule('versioning');
const INTERCEPTORS = workflowModule('interceptors');

/** The bundles that the build makes, by their files' names: whatever the settings of a worker, one is its. */
export const BUILT_BUNDLES: Readonly<Record<string, readonly string[]>> = {
  'plain.js': [],
  'versioned.js': [VERSIONING],
  'traced.js': [TRACING_INTERCEPTORS],
  'versioned-traced.js': [VERSIONING, TRACING_INTERCEPTORS],
};
/** Where the build puts them, seen from the package's root. */
export const BUNDLE_FOLDER = 'workflow-bundles';

const bundles = new Map<string, Promise<WorkflowBundleWithSourceMap>>();

/**
 * The workflow code as one bundle, with the interceptors of more modules than its own: read where this program was built, else
 * made, once a process. Throws when the build's file can't be read, or the code can't be bundled.
 */
export function workflowBundle(interceptorModules: readonly string[] = []): Promise<WorkflowBundleWithSourceMap> {
  const key = interceptorModules.join('\n');
  const [built] = Object.entries(BUILT_BUNDLES).find(([, modules]) => modules.join('\n') === key) ?? [];
  const made =
    bundles.get(key) ??
    (EXTENSION === '.js' && built !== undefined
      ? readBundle(built)
      : bundleWorkflows(workflowModule('index'), interceptorModules));
  bundles.set(key, made);
  return made;
}

async function readBundle(name: string): Promise<WorkflowBundleWithSourceMap> {
  const code = await readFile(new URL(`../${BUNDLE_FOLDER}/${name}`, import.meta.url), 'utf8');
  // The map is in the code: the SDK keeps the field for those who had it.
  return { code, sourceMap: '' };
}

/** Bundles the workflows that a module exports, with the interceptors that tell their story. */
export function bundleWorkflows(
  workflowsPath: string,
  interceptorModules: readonly string[] = [],
): Promise<WorkflowBundleWithSourceMap> {
  return bundleWorkflowCode({
    workflowsPath,
    // Evaluated once a worker and frozen, instead of anew for each workflow: none of them keeps anything between calls.
    preloadModules: [INTERCEPTORS, workflowsPath, ...interceptorModules.filter((module) => module === VERSIONING)],
    workflowInterceptorModules: [INTERCEPTORS, ...interceptorModules],
    logger: new DefaultLogger('WARN'),
  });
}
