CREATE FUNCTION note_instance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_change('instance', NEW.id, NEW.project_id);
  RETURN NULL;
END $$;
CREATE TRIGGER instance_made_noted AFTER INSERT ON instance FOR EACH ROW EXECUTE FUNCTION note_instance();
CREATE TRIGGER instance_change_noted AFTER UPDATE ON instance FOR EACH ROW
  WHEN (NEW.* IS DISTINCT FROM OLD.*) EXECUTE FUNCTION note_instance();
