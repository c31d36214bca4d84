-- Not what it is charged: that changes with every start.
CREATE FUNCTION note_project() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_change('project', NEW.id, NEW.id);
  RETURN NULL;
END $$;
CREATE TRIGGER project_made_noted AFTER INSERT ON project FOR EACH ROW EXECUTE FUNCTION note_project();
CREATE TRIGGER project_change_noted AFTER UPDATE ON project FOR EACH ROW
  WHEN ((NEW.name, NEW.description, NEW.quota_cpus, NEW.quota_memory_bytes, NEW.time_deleted)
    IS DISTINCT FROM (OLD.name, OLD.description, OLD.quota_cpus, OLD.quota_memory_bytes, OLD.time_deleted))
  EXECUTE FUNCTION note_project();
