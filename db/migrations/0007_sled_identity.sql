ALTER TABLE "sled" ADD COLUMN "identified" boolean DEFAULT false NOT NULL;--> statement-breakpoint
CREATE TABLE "sled_invite" (
	"id" uuid PRIMARY KEY NOT NULL,
	"sled_name" text NOT NULL,
	"secret_hash" text NOT NULL,
	"time_created" timestamp with time zone DEFAULT now() NOT NULL,
	"time_expires" timestamp with time zone NOT NULL,
	"time_used" timestamp with time zone,
	"sled_id" uuid,
	"key_fingerprint" text,
	CONSTRAINT "sled_invite_used" CHECK (num_nulls(time_used, sled_id, key_fingerprint) IN (0, 3))
);
--> statement-breakpoint
CREATE TABLE "sled_certificate" (
	"serial" text PRIMARY KEY NOT NULL,
	"sled_id" uuid NOT NULL,
	"time_issued" timestamp with time zone DEFAULT now() NOT NULL,
	"time_expires" timestamp with time zone NOT NULL,
	"time_revoked" timestamp with time zone
);
--> statement-breakpoint
ALTER TABLE "sled_invite" ADD CONSTRAINT "sled_invite_sled_id_sled_id_fk" FOREIGN KEY ("sled_id") REFERENCES "public"."sled"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "sled_certificate" ADD CONSTRAINT "sled_certificate_sled_id_sled_id_fk" FOREIGN KEY ("sled_id") REFERENCES "public"."sled"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE UNIQUE INDEX "sled_invite_secret" ON "sled_invite" USING btree ("secret_hash");--> statement-breakpoint
CREATE INDEX "sled_certificate_sled" ON "sled_certificate" USING btree ("sled_id");
