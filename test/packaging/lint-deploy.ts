/** `npm run lint:deploy`: every check of `deploy/` that can be run here, and which could not. Ends with 1 where something was found. */
import { fileURLToPath } from 'node:url';
import { colours } from '../../cli/format.ts';
import { DEPLOY_CHECKS, NotThere, runCheck } from './deploy-checks.ts';

const DEPLOY = fileURLToPath(new URL('../../deploy/', import.meta.url));
const count = { good: 0, found: 0, 'not run': 0 };
for (const check of DEPLOY_CHECKS) {
  try {
    const found = await runCheck(check, DEPLOY);
    count[found.length === 0 ? 'good' : 'found'] += 1;
    console.log(`${found.length === 0 ? colours.green('✓') : colours.red('✗')} ${check.program}: ${check.name}`);
    for (const line of found) console.log(`    ${line}`);
  } catch (error) {
    if (!(error instanceof NotThere)) throw error;
    count['not run'] += 1;
    console.log(`${colours.yellow('–')} ${check.program}: ${check.name} was not checked: ${error.message}`);
  }
}
console.log(`\n${count.good} good, ${count.found} with findings, ${count['not run']} not run`);
process.exitCode = count.found === 0 ? 0 : 1;
