/**
 * The rooms and the arrows between them: `npm run check`. A room may import what its line names, and nothing else of ours;
 * the lines go from the ground up, so that no arrow can lead back. Source of the picture: ARCHITECTURE.md.
 */
const GROUND = ['model', 'wire', 'platform'];
const STORE = [...GROUND, 'db', 'temporal'];
const ROOMS = {
  model: [],
  wire: ['model'],
  client: ['model', 'wire'],
  platform: ['model', 'wire'],
  db: GROUND,
  temporal: [...GROUND, 'db'],
  activities: STORE,
  // Types alone: test/rules/workflow-modules.test.ts looks at what the bundle holds.
  workflows: ['model', 'activities'],
  worker: [...STORE, 'activities'],
  'sled-agent': GROUND,
  doctor: [...STORE, 'activities', 'sled-agent'],
  api: [...STORE, 'activities'],
  stack: [...STORE, 'client', 'worker', 'api', 'sled-agent'],
  cli: [...STORE, 'activities', 'client', 'worker', 'api', 'sled-agent', 'doctor', 'stack'],
  deploy: GROUND,
  // In the browser, so of ours only what is pure; what the API answers, it has as types of the API's document.
  console: ['model'],
  packaging: [...STORE, 'activities', 'worker'],
};

/** A path inside of one of these rooms. */
const inside = (rooms) => `^(${rooms.join('|')})/`;

/** @type {import('dependency-cruiser').IConfiguration} */
module.exports = {
  forbidden: [
    ...Object.entries(ROOMS).map(([room, allowed]) => ({
      name: `${room} imports ${allowed.length === 0 ? 'its own alone' : `${allowed.join(', ')} alone`}`,
      severity: 'error',
      from: { path: inside([room]) },
      to: { dependencyTypesNot: ['core'], path: '^[^/]+/', pathNot: ['node_modules/', inside([room, ...allowed])] },
    })),
    {
      name: 'no circle of files',
      severity: 'error',
      from: { pathNot: '^(test|bench)/' },
      to: { circular: true },
    },
    {
      name: 'nobody but db writes SQL',
      severity: 'error',
      from: { pathNot: '^(db|test|bench)/' },
      to: { path: 'node_modules/(drizzle-orm|pg)/' },
    },
    {
      name: 'only the API and the sled agent serve HTTP by a framework',
      severity: 'error',
      from: { pathNot: '^(api|sled-agent|test|bench)/' },
      to: { path: 'node_modules/(@fastify/|fastify)' },
    },
    {
      name: 'the model does no I/O',
      severity: 'error',
      from: { path: '^model/' },
      to: { dependencyTypes: ['core', 'npm'] },
    },
    {
      name: 'nothing is imported that is not there, or that package.json does not name',
      severity: 'error',
      from: {},
      to: { couldNotResolve: true },
    },
    {
      name: 'what runs in production is no development dependency',
      severity: 'error',
      // The console is built into files that hold what they need.
      from: { pathNot: '^(test|bench|deploy|packaging|console)/|^vitest.config.ts$' },
      to: { dependencyTypes: ['npm-dev', 'npm-no-pkg'] },
    },
  ],
  options: {
    // Reads the types' imports too. TypeScript 7 has no compiler for other programs to call.
    parser: 'swc',
    doNotFollow: { path: 'node_modules' },
    // The other engines, and what makes the console's types, are packages of their own, which need not be installed. Its parser
    // reads no TSX: what those files may import is in biome.json.
    exclude: { path: '^(docs/|dist/|bench/other-engines/|console/api-types/|[.][a-z])|[.]tsx$' },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: {
      extensions: ['.ts', '.js', '.mjs'],
      exportsFields: ['exports'],
      conditionNames: ['import', 'node', 'default', 'types'],
    },
  },
};
