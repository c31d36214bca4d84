CREATE INDEX "instance_migrating" ON "instance" USING btree ("id") WHERE migration_id IS NOT NULL;--> statement-breakpoint
CREATE INDEX "instance_ending" ON "instance" USING btree ("id") WHERE state = 'vmm' AND (intended_state <> 'running' OR time_deleted IS NOT NULL);--> statement-breakpoint
CREATE INDEX "instance_failed_list" ON "instance" USING btree ("project_id","name") WHERE state = 'failed' AND time_deleted IS NULL;--> statement-breakpoint
CREATE INDEX "sled_reservation_tombstoned" ON "sled_reservation" USING btree ("instance_id") WHERE kind = 'tombstoned';
