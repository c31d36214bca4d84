CREATE TYPE "public"."auto_restart_policy" AS ENUM('never', 'best_effort');--> statement-breakpoint
CREATE TYPE "public"."instance_state" AS ENUM('creating', 'no_vmm', 'vmm', 'failed', 'destroyed');--> statement-breakpoint
CREATE TYPE "public"."intended_state" AS ENUM('running', 'stopped', 'guest_shutdown', 'destroyed');--> statement-breakpoint
CREATE TYPE "public"."migration_state" AS ENUM('pending', 'in_progress', 'completed', 'failed');--> statement-breakpoint
CREATE TYPE "public"."operation_kind" AS ENUM('start', 'migrate');--> statement-breakpoint
CREATE TYPE "public"."reservation_kind" AS ENUM('active', 'target', 'tombstoned');--> statement-breakpoint
CREATE TYPE "public"."sled_policy" AS ENUM('in_service', 'no_provision', 'expunged');--> statement-breakpoint
CREATE TYPE "public"."start_reason" AS ENUM('user', 'auto_restart');--> statement-breakpoint
CREATE TYPE "public"."vmm_state" AS ENUM('creating', 'starting', 'running', 'stopping', 'stopped', 'rebooting', 'migrating', 'failed', 'destroyed', 'saga_unwound');--> statement-breakpoint
CREATE TABLE "instance" (
	"id" uuid PRIMARY KEY NOT NULL,
	"project_id" uuid NOT NULL,
	"name" text NOT NULL,
	"description" text NOT NULL,
	"hostname" text NOT NULL,
	"ncpus" integer NOT NULL,
	"memory_bytes" bigint NOT NULL,
	"state" "instance_state" NOT NULL,
	"active_vmm_id" uuid,
	"target_vmm_id" uuid,
	"migration_id" uuid,
	"state_generation" bigint DEFAULT 1 NOT NULL,
	"intended_state" "intended_state" NOT NULL,
	"auto_restart_policy" "auto_restart_policy",
	"auto_restart_cooldown_seconds" integer DEFAULT 300 NOT NULL,
	"time_last_auto_restarted" timestamp with time zone,
	"last_start_reason" "start_reason",
	"time_state_updated" timestamp with time zone DEFAULT now() NOT NULL,
	"time_created" timestamp with time zone DEFAULT now() NOT NULL,
	"time_modified" timestamp with time zone DEFAULT now() NOT NULL,
	"time_deleted" timestamp with time zone,
	CONSTRAINT "instance_vmm_iff_active" CHECK ((state = 'vmm') = (active_vmm_id IS NOT NULL)),
	CONSTRAINT "instance_target_iff_migration" CHECK ((target_vmm_id IS NOT NULL) = (migration_id IS NOT NULL)),
	CONSTRAINT "instance_target_needs_vmm" CHECK (target_vmm_id IS NULL OR state = 'vmm'),
	CONSTRAINT "instance_destroyed_is_deleted" CHECK (state <> 'destroyed' OR time_deleted IS NOT NULL),
	CONSTRAINT "instance_size" CHECK (ncpus >= 1 AND memory_bytes >= 1),
	CONSTRAINT "instance_generation" CHECK (state_generation >= 1)
);
--> statement-breakpoint
CREATE TABLE "migration" (
	"id" uuid PRIMARY KEY NOT NULL,
	"instance_id" uuid NOT NULL,
	"source_vmm_id" uuid NOT NULL,
	"target_vmm_id" uuid NOT NULL,
	"source_state" "migration_state" DEFAULT 'pending' NOT NULL,
	"source_generation" bigint DEFAULT 1 NOT NULL,
	"time_source_updated" timestamp with time zone,
	"target_state" "migration_state" DEFAULT 'pending' NOT NULL,
	"target_generation" bigint DEFAULT 1 NOT NULL,
	"time_target_updated" timestamp with time zone,
	"time_created" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "migration_two_vmms" CHECK (source_vmm_id <> target_vmm_id)
);
--> statement-breakpoint
CREATE TABLE "operation" (
	"id" uuid PRIMARY KEY NOT NULL,
	"kind" "operation_kind" NOT NULL,
	"instance_id" uuid NOT NULL,
	"vmm_id" uuid,
	"workflow_id" text NOT NULL,
	"succeeded" boolean,
	"error" jsonb,
	"time_started" timestamp with time zone DEFAULT now() NOT NULL,
	"time_ended" timestamp with time zone,
	CONSTRAINT "operation_outcome" CHECK ((time_ended IS NULL) = (succeeded IS NULL)),
	CONSTRAINT "operation_error" CHECK ((error IS NOT NULL) = (succeeded IS NOT DISTINCT FROM false))
);
--> statement-breakpoint
CREATE TABLE "project" (
	"id" uuid PRIMARY KEY NOT NULL,
	"name" text NOT NULL,
	"description" text NOT NULL,
	"quota_cpus" integer,
	"quota_memory_bytes" bigint,
	"charged_cpus" integer DEFAULT 0 NOT NULL,
	"charged_memory_bytes" bigint DEFAULT 0 NOT NULL,
	"time_created" timestamp with time zone DEFAULT now() NOT NULL,
	"time_modified" timestamp with time zone DEFAULT now() NOT NULL,
	"time_deleted" timestamp with time zone,
	CONSTRAINT "project_charged_not_negative" CHECK (charged_cpus >= 0 AND charged_memory_bytes >= 0)
);
--> statement-breakpoint
CREATE TABLE "provisioning_charge" (
	"instance_id" uuid PRIMARY KEY NOT NULL,
	"project_id" uuid NOT NULL,
	"cpus" integer NOT NULL,
	"memory_bytes" bigint NOT NULL,
	CONSTRAINT "provisioning_charge_size" CHECK (cpus >= 1 AND memory_bytes >= 1)
);
--> statement-breakpoint
CREATE TABLE "sled" (
	"id" uuid PRIMARY KEY NOT NULL,
	"name" text NOT NULL,
	"address" text NOT NULL,
	"threads" integer NOT NULL,
	"memory_bytes" bigint NOT NULL,
	"policy" "sled_policy" DEFAULT 'in_service' NOT NULL,
	"reserved_threads" integer DEFAULT 0 NOT NULL,
	"reserved_memory_bytes" bigint DEFAULT 0 NOT NULL,
	"time_created" timestamp with time zone DEFAULT now() NOT NULL,
	"time_modified" timestamp with time zone DEFAULT now() NOT NULL,
	"time_expunged" timestamp with time zone,
	CONSTRAINT "sled_capacity" CHECK (reserved_threads <= threads AND reserved_memory_bytes <= memory_bytes),
	CONSTRAINT "sled_reserved_not_negative" CHECK (reserved_threads >= 0 AND reserved_memory_bytes >= 0),
	CONSTRAINT "sled_expunged_time" CHECK ((policy = 'expunged') = (time_expunged IS NOT NULL))
);
--> statement-breakpoint
CREATE TABLE "sled_reservation" (
	"vmm_id" uuid PRIMARY KEY NOT NULL,
	"instance_id" uuid NOT NULL,
	"sled_id" uuid NOT NULL,
	"threads" integer NOT NULL,
	"memory_bytes" bigint NOT NULL,
	"kind" "reservation_kind" NOT NULL,
	CONSTRAINT "sled_reservation_size" CHECK (threads >= 1 AND memory_bytes >= 1)
);
--> statement-breakpoint
CREATE TABLE "vmm" (
	"id" uuid PRIMARY KEY NOT NULL,
	"instance_id" uuid NOT NULL,
	"sled_id" uuid,
	"ip" text,
	"port" integer,
	"state" "vmm_state" NOT NULL,
	"state_generation" bigint DEFAULT 1 NOT NULL,
	"unwinding_since" timestamp with time zone,
	"failure_reason" text,
	"commanded_at" timestamp with time zone,
	"time_state_updated" timestamp with time zone DEFAULT now() NOT NULL,
	"time_created" timestamp with time zone DEFAULT now() NOT NULL,
	"time_deleted" timestamp with time zone,
	CONSTRAINT "vmm_failed_iff_reason" CHECK ((state = 'failed') = (failure_reason IS NOT NULL)),
	CONSTRAINT "vmm_placed" CHECK (state = 'saga_unwound' OR (sled_id IS NOT NULL AND ip IS NOT NULL AND port IS NOT NULL)),
	CONSTRAINT "vmm_unwound_was_unwinding" CHECK (state <> 'saga_unwound' OR unwinding_since IS NOT NULL),
	CONSTRAINT "vmm_generation" CHECK (state_generation >= 1)
);
--> statement-breakpoint
ALTER TABLE "instance" ADD CONSTRAINT "instance_project_id_project_id_fk" FOREIGN KEY ("project_id") REFERENCES "public"."project"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "instance" ADD CONSTRAINT "instance_active_vmm_id_vmm_id_fk" FOREIGN KEY ("active_vmm_id") REFERENCES "public"."vmm"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "instance" ADD CONSTRAINT "instance_target_vmm_id_vmm_id_fk" FOREIGN KEY ("target_vmm_id") REFERENCES "public"."vmm"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "instance" ADD CONSTRAINT "instance_migration_id_migration_id_fk" FOREIGN KEY ("migration_id") REFERENCES "public"."migration"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "migration" ADD CONSTRAINT "migration_instance_id_instance_id_fk" FOREIGN KEY ("instance_id") REFERENCES "public"."instance"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "migration" ADD CONSTRAINT "migration_source_vmm_id_vmm_id_fk" FOREIGN KEY ("source_vmm_id") REFERENCES "public"."vmm"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "migration" ADD CONSTRAINT "migration_target_vmm_id_vmm_id_fk" FOREIGN KEY ("target_vmm_id") REFERENCES "public"."vmm"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "operation" ADD CONSTRAINT "operation_instance_id_instance_id_fk" FOREIGN KEY ("instance_id") REFERENCES "public"."instance"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "provisioning_charge" ADD CONSTRAINT "provisioning_charge_instance_id_instance_id_fk" FOREIGN KEY ("instance_id") REFERENCES "public"."instance"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "provisioning_charge" ADD CONSTRAINT "provisioning_charge_project_id_project_id_fk" FOREIGN KEY ("project_id") REFERENCES "public"."project"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "sled_reservation" ADD CONSTRAINT "sled_reservation_vmm_id_vmm_id_fk" FOREIGN KEY ("vmm_id") REFERENCES "public"."vmm"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "sled_reservation" ADD CONSTRAINT "sled_reservation_instance_id_instance_id_fk" FOREIGN KEY ("instance_id") REFERENCES "public"."instance"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "sled_reservation" ADD CONSTRAINT "sled_reservation_sled_id_sled_id_fk" FOREIGN KEY ("sled_id") REFERENCES "public"."sled"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "vmm" ADD CONSTRAINT "vmm_instance_id_instance_id_fk" FOREIGN KEY ("instance_id") REFERENCES "public"."instance"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "vmm" ADD CONSTRAINT "vmm_sled_id_sled_id_fk" FOREIGN KEY ("sled_id") REFERENCES "public"."sled"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE UNIQUE INDEX "instance_name" ON "instance" USING btree ("project_id","name") WHERE time_deleted IS NULL;--> statement-breakpoint
CREATE INDEX "instance_list" ON "instance" USING btree ("project_id","id") WHERE time_deleted IS NULL;--> statement-breakpoint
CREATE UNIQUE INDEX "instance_active_vmm" ON "instance" USING btree ("active_vmm_id") WHERE active_vmm_id IS NOT NULL;--> statement-breakpoint
CREATE UNIQUE INDEX "instance_target_vmm" ON "instance" USING btree ("target_vmm_id") WHERE target_vmm_id IS NOT NULL;--> statement-breakpoint
CREATE INDEX "instance_failed" ON "instance" USING btree ("id") WHERE state = 'failed' AND time_deleted IS NULL;--> statement-breakpoint
CREATE INDEX "migration_instance" ON "migration" USING btree ("instance_id");--> statement-breakpoint
CREATE INDEX "migration_source" ON "migration" USING btree ("source_vmm_id");--> statement-breakpoint
CREATE UNIQUE INDEX "migration_target" ON "migration" USING btree ("target_vmm_id");--> statement-breakpoint
CREATE INDEX "operation_instance" ON "operation" USING btree ("instance_id","time_started");--> statement-breakpoint
CREATE INDEX "operation_started" ON "operation" USING btree ("time_started");--> statement-breakpoint
CREATE INDEX "operation_open" ON "operation" USING btree ("time_started") WHERE time_ended IS NULL;--> statement-breakpoint
CREATE INDEX "operation_vmm" ON "operation" USING btree ("vmm_id");--> statement-breakpoint
CREATE UNIQUE INDEX "project_name" ON "project" USING btree ("name") WHERE time_deleted IS NULL;--> statement-breakpoint
CREATE INDEX "provisioning_charge_project" ON "provisioning_charge" USING btree ("project_id");--> statement-breakpoint
CREATE UNIQUE INDEX "sled_name" ON "sled" USING btree ("name") WHERE policy <> 'expunged';--> statement-breakpoint
CREATE UNIQUE INDEX "sled_address" ON "sled" USING btree ("address") WHERE policy <> 'expunged';--> statement-breakpoint
CREATE INDEX "sled_reservation_sled" ON "sled_reservation" USING btree ("sled_id");--> statement-breakpoint
CREATE INDEX "sled_reservation_instance" ON "sled_reservation" USING btree ("instance_id");--> statement-breakpoint
CREATE UNIQUE INDEX "sled_reservation_one_active" ON "sled_reservation" USING btree ("instance_id") WHERE kind = 'active';--> statement-breakpoint
CREATE UNIQUE INDEX "sled_reservation_one_target" ON "sled_reservation" USING btree ("instance_id") WHERE kind = 'target';--> statement-breakpoint
CREATE INDEX "vmm_instance" ON "vmm" USING btree ("instance_id") WHERE time_deleted IS NULL;--> statement-breakpoint
CREATE INDEX "vmm_sled" ON "vmm" USING btree ("sled_id") WHERE time_deleted IS NULL;--> statement-breakpoint
CREATE INDEX "vmm_gone" ON "vmm" USING btree ("instance_id") WHERE time_deleted IS NULL AND state IN ('destroyed', 'failed', 'saga_unwound');--> statement-breakpoint
CREATE UNIQUE INDEX "vmm_address" ON "vmm" USING btree ("ip","port") WHERE time_deleted IS NULL AND state NOT IN ('destroyed', 'failed', 'saga_unwound');