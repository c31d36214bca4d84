import { workflowIds } from '../model/workflow-names.ts';
import type { Contender } from './system/arena.ts';

const POSTGRES = 'PostgreSQL with fsync and synchronous_commit on';
const SQLITE = 'SQLite file of the development server, as it is shipped';

const engineMinimum = {
  front: 'peers/engine-minimum.ts',
  workers: null,
  workflowId: (id: string) => `engine-minimum/${id}`,
  hasDatabase: false,
} as const;

const mooring = {
  durability: `${POSTGRES}; workflow histories: ${SQLITE}`,
  temporal: 'embedded',
  front: 'processes/mooring-api.ts',
  workflowId: workflowIds.start,
  hasDatabase: true,
} as const;

/** The package of the engines that only the benchmark needs. */
export const OTHER_ENGINES = 'other-engines';

/** Everything that is compared, in the order of the tables. */
export const CONTENDERS: readonly Contender[] = [
  {
    id: 'floor',
    title: 'Plain async function (floor)',
    durability: `rows: ${POSTGRES}; the saga itself: none`,
    temporal: 'none',
    front: 'peers/floor.ts',
    workers: null,
    workflowId: null,
    hasDatabase: true,
  },
  {
    ...engineMinimum,
    id: 'engine-minimum',
    title: 'Temporal, empty workflow with one empty activity (the engine’s minimum)',
    durability: SQLITE,
    temporal: 'embedded',
  },
  { ...mooring, id: 'mooring', title: 'Mooring', workers: { file: 'processes/mooring-worker.ts', count: 1 } },
  {
    ...mooring,
    id: 'mooring-3-workers',
    title: 'Mooring, three workers',
    workers: { file: 'processes/mooring-worker.ts', count: 3 },
  },
  {
    ...engineMinimum,
    id: 'engine-minimum-external',
    title: 'The engine’s minimum on the Temporal server at --temporal',
    durability: 'as that server keeps histories',
    temporal: 'external',
  },
  {
    ...mooring,
    id: 'mooring-external',
    title: 'Mooring on the Temporal server at --temporal',
    durability: `${POSTGRES}; workflow histories: as that server keeps them`,
    temporal: 'external',
    workers: { file: 'processes/mooring-worker.ts', count: 1 },
  },
  {
    id: 'plain-temporal',
    title: 'Plain Temporal, one activity a statement, server as shipped',
    durability: `${POSTGRES}; workflow histories: ${SQLITE}`,
    temporal: 'as shipped',
    front: 'peers/plain-temporal.ts',
    workers: null,
    workflowId: (id) => `plain-start/${id}`,
    hasDatabase: true,
  },
  {
    id: 'dbos',
    title: 'DBOS Transact',
    durability: `rows and step results: ${POSTGRES}`,
    temporal: 'none',
    front: `${OTHER_ENGINES}/dbos.ts`,
    workers: null,
    workflowId: null,
    hasDatabase: true,
  },
  {
    id: 'restate',
    title: 'Restate',
    durability: `${POSTGRES}; journal: RocksDB of one server, as it is shipped`,
    temporal: 'none',
    front: `${OTHER_ENGINES}/restate.ts`,
    workers: null,
    workflowId: null,
    hasDatabase: true,
  },
];
