/** The order of the test files: those that take long begin first, so that none of them is left to run alone at the end. */
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** What takes more than a minute of a busy machine, the longest first. */
const LONG = [
  'matrix/matrix',
  'sled-agent/qemu-faults',
  'races/orders',
  'trust/outages',
  'soak/soak',
  'lifecycle/drain',
  'e2e/web-ui',
  'trust/fencing',
  'lifecycle/reconcilers',
  'cli/mooring',
  'cli/deployment',
  'races/overlaps',
  'trust/fuzz',
  'trust/qemu-fencing',
  'e2e/qemu',
  'traps/failures',
  'replay/replay-from',
  'trust/thirty-guests',
  'trust/random-fencing',
];

export class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rank = ({ moduleId }: TestSpecification) => {
      const at = LONG.findIndex((name) => moduleId.endsWith(`/test/${name}.test.ts`));
      return at < 0 ? LONG.length : at;
    };
    return (await super.sort(files)).sort((one, other) => rank(one) - rank(other));
  }
}
