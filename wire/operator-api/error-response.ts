import { z } from 'zod';

/** The body of every answer that is an error. */
export const errorResponse = z.object({
  error_code: z.string().optional(),
  message: z.string(),
  request_id: z.string(),
});
