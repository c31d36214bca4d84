/** What of Swagger UI is used. Source: https://swagger.io/docs/open-source-tools/swagger-ui/usage/configuration/ */
declare module 'swagger-ui-dist/swagger-ui-es-bundle.js' {
  interface Options {
    readonly url: string;
    readonly dom_id: string;
    readonly deepLinking?: boolean;
    readonly docExpansion?: 'list' | 'full' | 'none';
    readonly defaultModelsExpandDepth?: number;
    readonly displayRequestDuration?: boolean;
    readonly filter?: boolean;
    readonly validatorUrl?: string | null;
    readonly queryConfigEnabled?: boolean;
    readonly persistAuthorization?: boolean;
  }
  const show: (options: Options) => void;
  // biome-ignore lint/style/noDefaultExport: it is theirs
  export default show;
}
