CREATE TYPE "public"."access_role" AS ENUM('viewer', 'collaborator', 'admin');--> statement-breakpoint
CREATE TYPE "public"."audit_actor" AS ENUM('operator', 'local', 'sled', 'system', 'database');--> statement-breakpoint
CREATE TYPE "public"."audit_result" AS ENUM('success', 'error', 'unknown');--> statement-breakpoint
CREATE TABLE "access_token" (
	"id" uuid PRIMARY KEY NOT NULL,
	"name" text NOT NULL,
	"secret_hash" bytea NOT NULL,
	"role" "access_role" NOT NULL,
	"project_id" uuid,
	"time_created" timestamp with time zone DEFAULT now() NOT NULL,
	"time_expires" timestamp with time zone,
	"time_revoked" timestamp with time zone,
	CONSTRAINT "access_token_hash" CHECK (octet_length(secret_hash) = 32)
);
--> statement-breakpoint
CREATE TABLE "audit_log" (
	"id" uuid PRIMARY KEY NOT NULL,
	"time_started" timestamp with time zone NOT NULL,
	"time_completed" timestamp with time zone,
	"actor" "audit_actor" NOT NULL,
	"actor_name" text NOT NULL,
	"actor_id" uuid,
	"source_ip" text,
	"user_agent" text,
	"request_id" text NOT NULL,
	"request_uri" text NOT NULL,
	"operation" text NOT NULL,
	"subject_kind" text,
	"subject" text,
	"project_id" uuid,
	"saga_operation_id" uuid,
	"result" "audit_result",
	"http_status" integer,
	"error_code" text,
	"error_message" text,
	CONSTRAINT "audit_log_completed_has_result" CHECK ((time_completed IS NULL) = (result IS NULL))
);
--> statement-breakpoint
ALTER TABLE "access_token" ADD CONSTRAINT "access_token_project_id_project_id_fk" FOREIGN KEY ("project_id") REFERENCES "public"."project"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE UNIQUE INDEX "access_token_secret" ON "access_token" USING btree ("secret_hash");--> statement-breakpoint
CREATE UNIQUE INDEX "access_token_name" ON "access_token" USING btree ("name") WHERE time_revoked IS NULL;--> statement-breakpoint
CREATE INDEX "access_token_project" ON "access_token" USING btree ("project_id");--> statement-breakpoint
CREATE INDEX "audit_log_completed" ON "audit_log" USING btree ("time_completed","id") WHERE time_completed IS NOT NULL;--> statement-breakpoint
CREATE INDEX "audit_log_open" ON "audit_log" USING btree ("time_started") WHERE time_completed IS NULL;--> statement-breakpoint
CREATE INDEX "audit_log_open_operation" ON "audit_log" USING btree ("saga_operation_id") WHERE time_completed IS NULL;--> statement-breakpoint
-- A record that waits for its operation is completed in the transaction that writes the operation's outcome, whoever is
-- left by then. A caller's own answer, which comes after it, is written over it.
CREATE FUNCTION complete_audit_of_operation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE audit_log SET time_completed = clock_timestamp(),
    result = CASE WHEN NEW.succeeded THEN 'success'::audit_result ELSE 'error'::audit_result END,
    http_status = CASE WHEN NEW.succeeded THEN 202 ELSE (NEW.error->>'status')::integer END,
    error_code = NEW.error->>'error_code', error_message = left(NEW.error->>'message', 1024)
  WHERE saga_operation_id = NEW.id AND time_completed IS NULL;
  RETURN NULL;
END $$;--> statement-breakpoint
CREATE TRIGGER operation_ends AFTER INSERT OR UPDATE OF time_ended ON "operation" FOR EACH ROW
  WHEN (NEW.time_ended IS NOT NULL) EXECUTE FUNCTION complete_audit_of_operation();
