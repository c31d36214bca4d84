/** `npm run console:types`: writes the console's types of the API, as the working tree has it. */
import { startHarness } from '../support/harness.ts';
import { API_TYPES, apiDocument, writeApiTypes } from './api-types.ts';

const harness = await startHarness();
try {
  const document: unknown = await (await fetch(`${harness.stack.apiUrl}/openapi.json`)).json();
  await writeApiTypes(apiDocument.parse(document));
  console.log(`wrote ${API_TYPES}`);
} finally {
  await harness.close();
}
