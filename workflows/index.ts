/** What the worker bundles: every workflow type by its exported name. */
export { instanceMigrate } from './instance-migrate.ts';
export { instanceStart } from './instance-start.ts';
export { instanceStop } from './instance-stop.ts';
export { instanceUpdate } from './instance-update.ts';
export { migrationWatch } from './migration-watch.ts';
export { autoRestart, fencing, reaper, updaterScan, watcher } from './reconcile.ts';
export { sledDrain } from './sled-drain.ts';
export { vmmUnregister } from './vmm-unregister.ts';
export { vmmUnwind } from './vmm-unwind.ts';
