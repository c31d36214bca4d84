/** The API's own page: its OpenAPI document, for people, with everything tried out on this API and sent nowhere else. */
import SwaggerUI from 'swagger-ui-dist/swagger-ui-es-bundle.js';
import { keepWithinReach } from './within-reach.ts';

SwaggerUI({
  url: '/openapi.json',
  dom_id: '#docs',
  deepLinking: true,
  docExpansion: 'none',
  defaultModelsExpandDepth: -1,
  displayRequestDuration: true,
  filter: true,
  // What would be asked of another host.
  validatorUrl: null,
  queryConfigEnabled: false,
  // A token is forgotten with the page.
  persistAuthorization: false,
});

const page = document.getElementById('docs');
if (page !== null) keepWithinReach(page);
