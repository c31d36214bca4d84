CREATE TYPE "public"."restart_priority" AS ENUM('critical', 'normal', 'low');--> statement-breakpoint
CREATE TYPE "public"."death_cause" AS ENUM('lease', 'operator');--> statement-breakpoint
ALTER TABLE "instance" ADD COLUMN "restart_priority" "restart_priority" DEFAULT 'normal' NOT NULL;--> statement-breakpoint
ALTER TABLE "sled" ADD COLUMN "lease_ms" integer;--> statement-breakpoint
ALTER TABLE "sled" ADD COLUMN "lease_renewed_at" timestamp with time zone;--> statement-breakpoint
ALTER TABLE "sled" ADD COLUMN "lease_confirmed_at" timestamp with time zone;--> statement-breakpoint
ALTER TABLE "sled" ADD COLUMN "fencing_since" timestamp with time zone;--> statement-breakpoint
ALTER TABLE "sled" ADD COLUMN "lease_epoch" bigint DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "sled" ADD COLUMN "time_declared_dead" timestamp with time zone;--> statement-breakpoint
ALTER TABLE "sled" ADD COLUMN "declared_dead_by" "death_cause";--> statement-breakpoint
ALTER TABLE "sled" ADD CONSTRAINT "sled_lease_whole" CHECK (num_nulls(lease_ms, lease_renewed_at, fencing_since) IN (0, 3));--> statement-breakpoint
ALTER TABLE "sled" ADD CONSTRAINT "sled_lease_length" CHECK (lease_ms >= 1);--> statement-breakpoint
ALTER TABLE "sled" ADD CONSTRAINT "sled_death_whole" CHECK ((time_declared_dead IS NULL) = (declared_dead_by IS NULL));--> statement-breakpoint
CREATE TABLE "lease_service" (
	"singleton" boolean PRIMARY KEY DEFAULT true NOT NULL,
	"last_beat_at" timestamp with time zone NOT NULL,
	CONSTRAINT "lease_service_one_row" CHECK (singleton)
);
--> statement-breakpoint
CREATE TABLE "lease_service_gap" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY (sequence name "lease_service_gap_id_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 9223372036854775807 START WITH 1 CACHE 1),
	"began_at" timestamp with time zone NOT NULL,
	"ended_at" timestamp with time zone NOT NULL
);
--> statement-breakpoint
CREATE INDEX "lease_service_gap_ended" ON "lease_service_gap" USING btree ("ended_at");--> statement-breakpoint
INSERT INTO "lease_service" ("last_beat_at") VALUES (now());--> statement-breakpoint
-- A sled that was declared dead takes no new reservation either: a claim that picked it before waits for the declaration here.
CREATE OR REPLACE FUNCTION keep_sled_sums() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP IN ('UPDATE', 'DELETE') THEN
    UPDATE sled SET reserved_threads = reserved_threads - OLD.threads, reserved_memory_bytes = reserved_memory_bytes - OLD.memory_bytes
     WHERE id = OLD.sled_id;
  END IF;
  IF TG_OP IN ('INSERT', 'UPDATE') THEN
    UPDATE sled SET reserved_threads = reserved_threads + NEW.threads, reserved_memory_bytes = reserved_memory_bytes + NEW.memory_bytes
     WHERE id = NEW.sled_id AND (policy = 'in_service' AND time_declared_dead IS NULL OR TG_OP = 'UPDATE');
    IF NOT FOUND THEN
      RAISE EXCEPTION 'sled % takes no new reservation', NEW.sled_id USING ERRCODE = '23514', CONSTRAINT = 'sled_in_service';
    END IF;
  END IF;
  RETURN NULL;
END $$;
