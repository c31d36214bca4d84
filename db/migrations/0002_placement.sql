CREATE TYPE "public"."affinity_kind" AS ENUM('affinity', 'anti_affinity');--> statement-breakpoint
CREATE TYPE "public"."affinity_policy" AS ENUM('allow', 'fail');--> statement-breakpoint
CREATE TYPE "public"."failure_domain" AS ENUM('sled');--> statement-breakpoint
CREATE TABLE "affinity_group" (
	"id" uuid PRIMARY KEY NOT NULL,
	"project_id" uuid NOT NULL,
	"kind" "affinity_kind" NOT NULL,
	"name" text NOT NULL,
	"description" text NOT NULL,
	"policy" "affinity_policy" NOT NULL,
	"failure_domain" "failure_domain" NOT NULL,
	"time_created" timestamp with time zone DEFAULT now() NOT NULL,
	"time_modified" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "affinity_group_member" (
	"group_id" uuid NOT NULL,
	"instance_id" uuid NOT NULL,
	CONSTRAINT "affinity_group_member_pkey" PRIMARY KEY("group_id","instance_id")
);
--> statement-breakpoint
CREATE TABLE "instance_network" (
	"instance_id" uuid PRIMARY KEY NOT NULL,
	"sled_id" uuid,
	"vmm_id" uuid,
	"ip" text,
	"port" integer,
	"generation" bigint DEFAULT 1 NOT NULL,
	"changed_in" "xid8" DEFAULT pg_current_xact_id() NOT NULL,
	"time_modified" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "instance_network_whole" CHECK (num_nulls(sled_id, vmm_id, ip, port) IN (0, 4)),
	CONSTRAINT "instance_network_generation" CHECK (generation >= 1)
);
--> statement-breakpoint
ALTER TABLE "affinity_group" ADD CONSTRAINT "affinity_group_project_id_project_id_fk" FOREIGN KEY ("project_id") REFERENCES "public"."project"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "affinity_group_member" ADD CONSTRAINT "affinity_group_member_group_id_affinity_group_id_fk" FOREIGN KEY ("group_id") REFERENCES "public"."affinity_group"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "affinity_group_member" ADD CONSTRAINT "affinity_group_member_instance_id_instance_id_fk" FOREIGN KEY ("instance_id") REFERENCES "public"."instance"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "instance_network" ADD CONSTRAINT "instance_network_instance_id_instance_id_fk" FOREIGN KEY ("instance_id") REFERENCES "public"."instance"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "instance_network" ADD CONSTRAINT "instance_network_sled_id_sled_id_fk" FOREIGN KEY ("sled_id") REFERENCES "public"."sled"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "instance_network" ADD CONSTRAINT "instance_network_vmm_id_vmm_id_fk" FOREIGN KEY ("vmm_id") REFERENCES "public"."vmm"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE UNIQUE INDEX "affinity_group_name" ON "affinity_group" USING btree ("project_id","kind","name");--> statement-breakpoint
CREATE INDEX "affinity_group_member_instance" ON "affinity_group_member" USING btree ("instance_id");--> statement-breakpoint
CREATE INDEX "instance_network_changed" ON "instance_network" USING btree ("changed_in","instance_id");--> statement-breakpoint
-- The last line of defence of the groups that must not be broken: whatever a placement had read, the group's row is locked
-- here, and what is read after that is what was committed before. A tombstoned reservation has no guest, so it doesn't count.
CREATE FUNCTION guard_affinity() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  broken text;
BEGIN
  IF NEW.kind = 'tombstoned' THEN
    RETURN NEW;
  END IF;
  PERFORM 1 FROM affinity_group JOIN affinity_group_member mine ON mine.group_id = affinity_group.id
    WHERE mine.instance_id = NEW.instance_id AND affinity_group.policy = 'fail'
    ORDER BY affinity_group.id FOR NO KEY UPDATE OF affinity_group;
  IF NOT FOUND THEN
    RETURN NEW;
  END IF;
  SELECT affinity_group.name INTO broken
    FROM affinity_group_member mine
    JOIN affinity_group ON affinity_group.id = mine.group_id AND affinity_group.policy = 'fail'
    JOIN affinity_group_member other ON other.group_id = mine.group_id AND other.instance_id <> mine.instance_id
    JOIN sled_reservation held ON held.instance_id = other.instance_id AND held.kind <> 'tombstoned'
    WHERE mine.instance_id = NEW.instance_id AND (affinity_group.kind = 'affinity') <> (held.sled_id = NEW.sled_id)
    LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'group % forbids instance % on sled %', broken, NEW.instance_id, NEW.sled_id
      USING ERRCODE = '23514', CONSTRAINT = 'affinity_group_forbids';
  END IF;
  RETURN NEW;
END $$;
--> statement-breakpoint
CREATE TRIGGER sled_reservation_affinity BEFORE INSERT OR UPDATE OF sled_id ON sled_reservation
  FOR EACH ROW EXECUTE FUNCTION guard_affinity();
--> statement-breakpoint
-- Who may become a member: an instance of the group's project that has no place yet; 32 members a group, 16 groups of a kind
-- an instance, as in Omicron (nexus/db-queries/src/db/datastore/affinity.rs). The instance first, then the group, as a start
-- locks them.
CREATE FUNCTION guard_affinity_member() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  joining instance%ROWTYPE;
  joined affinity_group%ROWTYPE;
BEGIN
  SELECT * INTO joining FROM instance WHERE id = NEW.instance_id FOR NO KEY UPDATE;
  SELECT * INTO joined FROM affinity_group WHERE id = NEW.group_id FOR NO KEY UPDATE;
  IF joining.time_deleted IS NOT NULL OR joining.project_id <> joined.project_id THEN
    RAISE EXCEPTION 'instance % is not of the project of group %', NEW.instance_id, joined.name
      USING ERRCODE = '23514', CONSTRAINT = 'affinity_member_of_project';
  END IF;
  IF EXISTS (SELECT 1 FROM sled_reservation WHERE instance_id = NEW.instance_id AND kind <> 'tombstoned') THEN
    RAISE EXCEPTION 'instance % has a place already', NEW.instance_id USING ERRCODE = '23514', CONSTRAINT = 'affinity_member_unplaced';
  END IF;
  IF (SELECT count(*) FROM affinity_group_member WHERE group_id = NEW.group_id) >= 32 THEN
    RAISE EXCEPTION 'group % is full', joined.name USING ERRCODE = '23514', CONSTRAINT = 'affinity_group_size';
  END IF;
  IF (SELECT count(*) FROM affinity_group_member mine JOIN affinity_group ON affinity_group.id = mine.group_id
       WHERE mine.instance_id = NEW.instance_id AND affinity_group.kind = joined.kind) >= 16 THEN
    RAISE EXCEPTION 'instance % is in too many groups', NEW.instance_id USING ERRCODE = '23514', CONSTRAINT = 'affinity_groups_of_instance';
  END IF;
  RETURN NEW;
END $$;
--> statement-breakpoint
CREATE TRIGGER affinity_group_member_guard BEFORE INSERT ON affinity_group_member
  FOR EACH ROW EXECUTE FUNCTION guard_affinity_member();
--> statement-breakpoint
CREATE FUNCTION leave_affinity_groups() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM affinity_group_member WHERE instance_id = NEW.id;
  RETURN NULL;
END $$;
--> statement-breakpoint
CREATE TRIGGER instance_leaves_affinity_groups AFTER UPDATE OF time_deleted ON instance
  FOR EACH ROW WHEN (NEW.time_deleted IS NOT NULL AND OLD.time_deleted IS NULL) EXECUTE FUNCTION leave_affinity_groups();
--> statement-breakpoint
-- Where an instance lives changes with a generation that rises by one, in a transaction that pollers can go by.
CREATE FUNCTION guard_instance_network() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.generation <> OLD.generation + 1 OR NEW.changed_in <> pg_current_xact_id() THEN
    RAISE EXCEPTION 'instance %: a change of its network must raise the generation and name its transaction', OLD.instance_id
      USING ERRCODE = '23514', CONSTRAINT = 'instance_network_generation_rises';
  END IF;
  RETURN NEW;
END $$;
--> statement-breakpoint
CREATE TRIGGER instance_network_guard BEFORE UPDATE ON instance_network FOR EACH ROW EXECUTE FUNCTION guard_instance_network();
--> statement-breakpoint
-- The instances that run while this migration is made.
INSERT INTO instance_network (instance_id, sled_id, vmm_id, ip, port)
  SELECT instance.id, vmm.sled_id, vmm.id, vmm.ip, vmm.port FROM instance JOIN vmm ON vmm.id = instance.active_vmm_id
  WHERE vmm.state <> 'saga_unwound';
