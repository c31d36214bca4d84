/** What an agent that was restarted does with a QEMU process that it finds again. A pure rule. */
import { readSourceVerdict } from './source-verdict.ts';

export interface FoundVm {
  /** QEMU's run state. Source: qapi/run-state.json, `RunState`. */
  readonly runState: string;
  /** `query-migrate`'s status; `none` when there was no migration. */
  readonly migrationStatus: string;
  /** The last command before the agent ended. */
  readonly lastCommand: 'nothing' | 'running' | 'migration_target';
  /** A migration out of it that was not over, by the agent's store. */
  readonly outgoing: boolean;
  /** A migration into it that was not over, by the agent's store, and whether the source's VMM is known. */
  readonly incoming: 'none' | 'source_known' | 'source_unknown';
}

/**
 * `wait`: no command to run has come. `run`: one has, and the agent ended before it was done. `runs`: its guest executes.
 * `resume`: its guest stands still and is its own. `gave`: its guest has left. `cancel`: a migration out of it is under
 * way without anyone to watch over it. `settle`: ask the source who has the guest. `arrived`: the guest had been
 * started. `powered_off`, `panicked`: the guest is over. `fail`: nothing can become of it.
 */
export type RecoveryStep =
  | 'wait'
  | 'run'
  | 'runs'
  | 'resume'
  | 'gave'
  | 'cancel'
  | 'settle'
  | 'arrived'
  | 'powered_off'
  | 'panicked'
  | 'fail';

/** Decides what is to be done; never both sides of a migration run a guest. */
export function recoverVm(found: FoundVm): RecoveryStep {
  const { runState, migrationStatus, lastCommand } = found;
  if (found.incoming !== 'none') {
    // Made with -S: only the agent's `cont`, given after everything had come, lets a destination run.
    if (runState === 'running') return 'arrived';
    return found.incoming === 'source_known' ? 'settle' : 'fail';
  }
  if (found.outgoing) {
    switch (readSourceVerdict(runState, migrationStatus)) {
      case 'given':
        return 'gave';
      case 'under_way':
        return 'cancel';
      case 'kept':
        if (runState === 'postmigrate') return 'resume';
    }
  } else if (runState === 'postmigrate') return 'gave';
  switch (runState) {
    case 'shutdown':
      return 'powered_off';
    case 'guest-panicked':
      return 'panicked';
    case 'running':
      return 'runs';
    case 'prelaunch':
      if (lastCommand === 'nothing') return 'wait';
      return lastCommand === 'running' ? 'run' : 'fail';
    case 'inmigrate':
      return lastCommand === 'nothing' ? 'wait' : 'fail';
    case 'paused':
      return 'resume';
    // io-error, internal-error, watchdog, …: QEMU itself has given the guest up.
    default:
      return 'fail';
  }
}
